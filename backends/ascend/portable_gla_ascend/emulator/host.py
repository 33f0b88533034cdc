"""Tensors of a device as a launch on the host sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def on_host(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Copy the memory of tensors that lie elsewhere to the host, whole, and back at the end; others are as they are."""
    copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def here(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device.type == "cpu":
            return value
        there = value.untyped_storage()
        _, copy = copies.setdefault(there.data_ptr(), (there, there.cpu()))  # type: ignore[no-untyped-call]
        found = value.new_empty(0, device="cpu")
        return found.set_(copy, value.storage_offset(), value.size(), value.stride())  # type: ignore[call-overload]

    yield tuple(here(value) for value in args)
    for there, copy in copies.values():
        there.copy_(copy)
