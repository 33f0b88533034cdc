"""The memory of one launch: every address that is loaded or stored is checked against the tensors that were passed."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from triton._C.libtriton import interpreter

from .errors import OutOfBoundsError, RaceError
from .floats import Array


@dataclasses.dataclass(frozen=True)
class Checks:
    """What launches check; one setting for the process, since a backward pass may run on another thread."""

    bounds: bool = True
    races: bool = True


_checks = Checks()


@contextlib.contextmanager
def checking(bounds: bool = True, races: bool = True) -> Iterator[None]:
    """Choose what launches within the context check, on all threads; by default they check everything.

    Parameters
    ----------
    bounds
        Whether each address must lie in the storage of one of the launch's tensors.
    races
        Whether programs must keep from each other's addresses. This takes 8 bytes for each element of the tensors.
    """
    global _checks
    before, _checks = _checks, Checks(bounds, races)
    try:
        yield
    finally:
        _checks = before


class _Region:
    """A stretch of memory that tensors of the launch share, and who touched each of its elements first."""

    def __init__(self, start: int, end: int, element: int) -> None:
        self.start, self.end, self.element = start, end, element
        self.readers: Array | None = None  # a program's number + 1, or 0, for each element; made on first use
        self.writers: Array | None = None

    def elements(self, addresses: Array, size: int) -> Array:
        """Positions of the elements that values of ``size`` bytes at ``addresses`` cover."""
        if size < self.element:  # a pointer was cast to a smaller type: keep book in that unit from now on
            self.readers, self.writers = (
                None if who is None else np.repeat(who, self.element // size) for who in (self.readers, self.writers))
            self.element = size
        positions: Array = (addresses - np.uint64(self.start)).view(np.int64) // self.element
        if size > self.element:
            positions = (positions[:, None] + np.arange(size // self.element)).reshape(-1)
        return positions

    def blank(self) -> Array:
        return np.zeros(-(-(self.end - self.start) // self.element), dtype=np.int32)


class Memory:
    """Loads and stores of one launch.

    Programs run one after another in the order of their numbers, so it is enough to know who touched an element first.
    """

    def __init__(self, kernel: str, tensors: list[torch.Tensor], counting: bool) -> None:
        self.kernel = kernel
        self.program = 0
        self.loaded = self.stored = 0
        self._races = _checks.races
        self._book = counting or _checks.races
        self._watch = self._book or _checks.bounds
        self._regions = _regions(tensors) if self._watch else []
        self._starts = [region.start for region in self._regions]

    @property
    def unique_loaded(self) -> int:
        """Bytes loaded, each address once."""
        return sum(int(np.count_nonzero(r.readers)) * r.element for r in self._regions if r.readers is not None)

    @property
    def unique_stored(self) -> int:
        """Bytes stored, each address once."""
        return sum(int(np.count_nonzero(r.writers)) * r.element for r in self._regions if r.writers is not None)

    def load(self, addresses: Array, mask: Array | None, other: Array | None, dtype: np.dtype[Any]) -> Array:
        """Return the values of ``dtype`` at ``addresses`` (bytes, uint64); ``other``, or 0, where ``mask`` is false."""
        if self._watch:
            self._visit("load", addresses, mask, dtype.itemsize)
        if mask is None:
            mask = np.ones(addresses.shape, dtype=np.bool_)
        if other is None:
            other = np.zeros(addresses.shape, dtype=dtype)
        values: Array = interpreter.load(addresses, mask, other, dtype)
        return values

    def store(self, addresses: Array, values: Array, mask: Array | None, dtype: np.dtype[Any]) -> None:
        """Write ``values`` to ``addresses`` (bytes, uint64) where ``mask``, if there is one, is true."""
        if self._watch:
            self._visit("store", addresses, mask, dtype.itemsize)
        if mask is None:
            mask = np.ones(addresses.shape, dtype=np.bool_)
        interpreter.store(addresses, values.astype(dtype, copy=False), mask)

    def _visit(self, access: str, addresses: Array, mask: Array | None, size: int) -> None:
        reached = addresses.reshape(-1) if mask is None or mask.all() else addresses[mask]
        if not reached.size:
            return
        if access == "load":
            self.loaded += reached.size * size
        else:
            self.stored += reached.size * size
        low, high = int(reached.min()), int(reached.max())
        region = self._region(access, low, size)
        if high + size <= region.end:
            if self._book:
                self._enter(access, region, reached, size)
            return
        while reached.size:  # one access reaches into several tensors, or beyond them
            region = self._region(access, int(reached.min()), size)
            inside = reached <= np.uint64(region.end - size)
            if self._book:
                self._enter(access, region, reached[inside], size)
            reached = reached[~inside]

    def _region(self, access: str, address: int, size: int) -> _Region:
        at = bisect.bisect_right(self._starts, address) - 1
        if at >= 0 and address + size <= self._regions[at].end:
            return self._regions[at]
        gaps = [(r.start - address, f"{r.start - address} bytes before") for r in self._regions if address < r.start]
        gaps += [(address + size - r.end, f"ends {address + size - r.end} bytes after")
                 for r in self._regions if address >= r.start]
        where = min(gaps)[1] + " the nearest tensor" if gaps else "the launch has no tensors"
        raise OutOfBoundsError(
            f"{self.kernel}, program {self.program}: {access} of {size} bytes out of bounds: {where}")

    def _enter(self, access: str, region: _Region, addresses: Array, size: int) -> None:
        me = self.program + 1
        elements = region.elements(addresses, size)
        if self._races and region.writers is not None:
            first = region.writers[elements]
            self._refuse(access, "stores to", region, elements, first, (first != 0) & (first != me))
        if access == "load":
            if region.readers is None:
                region.readers = region.blank()
            first = region.readers[elements]
            if not first.all():
                region.readers[elements[first == 0]] = me
            return
        if self._races and region.readers is not None:
            first = region.readers[elements]
            self._refuse(access, "loads", region, elements, first, (first != 0) & (first != me))
        if region.writers is None:
            region.writers = region.blank()
        region.writers[elements] = me

    def _refuse(self, access: str, other: str, region: _Region, elements: Array, first: Array, bad: Array) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            raise RaceError(f"{self.kernel}: program {self.program} {access}s what program {first[at] - 1} {other}: "
                            f"byte {int(elements[at]) * region.element} of a tensor's storage")


def _regions(tensors: list[torch.Tensor]) -> list[_Region]:
    """Return the storages of ``tensors``, in order of their addresses; those that overlap are one."""
    spans = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            spans.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes(), tensor.element_size()))
    regions: list[_Region] = []
    for start, end, element in sorted(spans):
        if regions and start < regions[-1].end:
            last = regions[-1]
            last.end, last.element = max(last.end, end), min(last.element, element)
        else:
            regions.append(_Region(start, end, element))
    return regions
