"""Poisoned memory poisons, and is clean again afterwards."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from portable_gla.testing.poison import poisoned_memory


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_torch_allocates_is_nan(dtype):
    x = torch.ones(3, 5, dtype=dtype)
    with poisoned_memory():
        fresh = [torch.empty(3, 5, dtype=dtype), torch.empty_like(x), x.new_empty(7), torch.empty(10**6, dtype=dtype),
                 torch.empty_strided((3, 5), (5, 1), dtype=dtype)]
    assert all(value.isnan().all() for value in fresh)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_malloc_gives_is_no_small_number():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    for size in (4096, 10**6):
        with poisoned_memory():
            block = libc.malloc(4 * size)
        numbers = (ctypes.c_float * size).from_address(block)
        assert all(abs(number) > 1e38 for number in numbers[:size])
        libc.free(block)


def test_it_ends_with_the_context():
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(KeyError), poisoned_memory():
        raise KeyError
    assert torch.are_deterministic_algorithms_enabled() == before
