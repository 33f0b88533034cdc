"""Wavefronts of shared memory and bytes of global memory, for patterns whose cost is known."""

from __future__ import annotations

import helpers_volta_toys as toys
import pytest
import torch
from portable_gla_volta import emulator

# mode: instructions, wavefronts, least, words
PATTERNS = {
    0: (1, 1, 1, 32),
    1: (1, 2, 1, 32),
    2: (1, 32, 1, 32),
    3: (1, 1, 1, 1),  # one word for all
    4: (1, 2, 2, 64),  # half a warp at a time
    5: (1, 4, 4, 128),  # a quarter
    6: (1, 32, 4, 128),  # rows of 128 bytes: all in four banks
    7: (1, 4, 4, 32),  # eight rows, each in banks of its own, read by every quarter
    8: (1, 2, 2, 64),  # half the lanes
    9: (1, 1, 1, 16),
    10: (1, 32, 2, 32),
    11: (4, 4, 4, 128),
    12: (2, 2, 2, 48),
    13: (2, 2, 2, 32),  # two places
}


@pytest.mark.parametrize("order", [0, 1, 5])
@pytest.mark.parametrize("mode", PATTERNS)
def test_wavefronts(mode: int, order: int) -> None:
    with emulator.options(order=order, count=True) as launches:
        toys.launch("banks", torch.empty(0), torch.empty(32), shared=4096, mode=mode)
    (launch,) = launches
    loads = [site for site in launch.sites if site.space == "shared" and not site.store]
    found = tuple(sum(getattr(site, name) for site in loads)
                  for name in ("instructions", "wavefronts", "least", "words"))
    assert found == PATTERNS[mode]
    assert launch.ragged == (2 if mode == 12 else 0)  # there lanes loop once or twice
    (stores,) = [site for site in launch.sites if site.space == "shared" and site.store]
    assert (stores.instructions, stores.wavefronts, stores.least) == (32, 32, 32)
    assert launch.barriers == 1


@pytest.mark.parametrize("checks", ["fast", "all"])
def test_bytes_of_global_memory(checks: str) -> None:
    x = toys.numbers(150)
    with emulator.options(count=True, checks=checks) as launches:
        assert torch.equal(toys.launch("doubled", x, torch.empty(150), threads=64, grid=3), 2 * x)
        toys.launch("twice", x[:64], torch.empty(64), threads=64, shared=256, count=3)
    first, second = launches
    assert (first.loaded, first.stored, first.loaded_once, first.stored_once) == (600, 600, 600, 600)
    assert (second.loaded, second.stored, second.loaded_once, second.stored_once) == (768, 256, 256, 256)
    assert (first.kernel, first.grid) == ("doubled", 3)
    loads = next(site for site in second.sites if site.space == "global" and not site.store)
    assert (loads.instructions, loads.lanes, loads.bytes) == (6, 192, 4)
    assert loads.sectors in (24, 30)  # 128 bytes are 4 sectors, or 5 where they begin inside one


def test_mma_and_shuffles() -> None:
    with emulator.options(count=True) as launches:
        toys.launch("summed", toys.numbers(32), torch.empty(32))
        toys.launch("multiplied", torch.zeros(256, dtype=torch.half), torch.zeros(256), mode=1)
    assert [(launch.shuffles, launch.multiplications) for launch in launches] == [(6, 0), (0, 1)]


def test_nothing_is_listed_unless_asked_for() -> None:
    with emulator.options() as launches:
        toys.launch("summed", toys.numbers(32), torch.empty(32))
    assert launches == []
    with pytest.raises(ValueError, match="checks"), emulator.options(checks="some"):
        pass
