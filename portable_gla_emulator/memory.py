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
from .tensors import aligned


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


_SEVERAL = -1  # programs have loaded an element


class _Region:
    """A stretch of memory that tensors of the launch share, and who touched each of its elements first."""

    def __init__(self, start: int, end: int, element: int) -> None:
        self.start, self.end, self.element = start, end, element
        # For each element a program's number + 1, or 0, or _SEVERAL; made on first use.
        self.readers: Array | None = None
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

    Where programs run one after another, in the order of their numbers, it is enough to know who touched an element
    first. Those that run ``together`` may touch it in any order, so of readers it counts whether there are several; and
    what they store can be taken back.
    """

    def __init__(self, kernel: str, tensors: list[torch.Tensor], counting: bool, *, together: bool = False) -> None:
        self.kernel = kernel
        self.programs = np.zeros(1, dtype=np.int32)
        self.together = together
        self.loaded = self.stored = 0
        self._moved = {"load": 0, "store": 0}  # bytes, by the programs that run now
        self._replaced: list[tuple[Array, Array, Array]] = []  # addresses, values and mask of what stores replaced
        self._kept = 0  # of these, how many belong to programs that have run to their end
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

    def begin(self, programs: Array) -> None:
        """Let loads and stores from now on be those of ``programs``, numbers that run together."""
        self.programs = programs.astype(np.int32)

    def finish(self) -> None:
        """Keep what the running programs did."""
        self.loaded += self._moved["load"]
        self.stored += self._moved["store"]
        self._moved = {"load": 0, "store": 0}
        self._kept = len(self._replaced)

    def take_back(self, everything: bool = False) -> None:
        """Undo the running programs' stores, or all of the launch; what was noted of addresses stays."""
        first = 0 if everything else self._kept
        while len(self._replaced) > first:
            interpreter.store(*self._replaced.pop())
        self._moved = {"load": 0, "store": 0}

    def load(self, addresses: Array, mask: Array | None, other: Array | None, dtype: np.dtype[Any]) -> Array:
        """Return the values of ``dtype`` at ``addresses`` (bytes, uint64); ``other``, or 0, where ``mask`` is false."""
        if mask is None:
            mask = np.ones(addresses.shape, dtype=np.bool_)
        if other is None:
            other = np.zeros((1,) * addresses.ndim, dtype=dtype)
        addresses, mask, other = np.broadcast_arrays(addresses, mask, other)
        if self._watch:
            self._visit("load", addresses, mask, dtype.itemsize)
        values: Array = interpreter.load(addresses, mask, other, dtype)
        return values

    def store(self, addresses: Array, values: Array, mask: Array | None, dtype: np.dtype[Any]) -> None:
        """Write ``values`` to ``addresses`` (bytes, uint64) where ``mask``, if there is one, is true."""
        if mask is None:
            mask = np.ones(addresses.shape, dtype=np.bool_)
        addresses, mask, values = np.broadcast_arrays(addresses, mask, values.astype(dtype, copy=False))
        if self._watch:
            self._visit("store", addresses, mask, dtype.itemsize)
        if self.together:
            bits = np.dtype(f"u{dtype.itemsize}")
            before = interpreter.load(addresses, mask, np.zeros(addresses.shape, dtype=bits), bits)
            self._replaced.append((addresses, before, mask))
        interpreter.store(addresses, values, mask)

    def _visit(self, access: str, addresses: Array, mask: Array, size: int) -> None:
        everything = mask.all()
        reached = addresses.reshape(-1) if everything else addresses[mask]
        if not reached.size:
            return
        # One place on the leading axis stands for all programs.
        times = self.programs.size // addresses.shape[0]
        self._moved[access] += reached.size * size * times
        who: Array | int = int(self.programs[0]) + 1 if self.programs.size == 1 else _SEVERAL
        if self._book and times == 1 and self.programs.size > 1:
            each = np.broadcast_to(aligned(self.programs + 1, addresses.ndim), addresses.shape)
            who = each.reshape(-1) if everything else each[mask]
        low, high = int(reached.min()), int(reached.max())
        region = self._region(access, low, size)
        if high + size <= region.end:
            if self._book:
                self._enter(access, region, reached, size, who)
            return
        while reached.size:  # one access reaches into several tensors, or beyond them
            region = self._region(access, int(reached.min()), size)
            inside = reached <= np.uint64(region.end - size)
            if self._book:
                self._enter(access, region, reached[inside], size, who if isinstance(who, int) else who[inside])
            reached, who = reached[~inside], who if isinstance(who, int) else who[~inside]

    def _region(self, access: str, address: int, size: int) -> _Region:
        at = bisect.bisect_right(self._starts, address) - 1
        if at >= 0 and address + size <= self._regions[at].end:
            return self._regions[at]
        gaps = [(r.start - address, f"{r.start - address} bytes before") for r in self._regions if address < r.start]
        gaps += [(address + size - r.end, f"ends {address + size - r.end} bytes after")
                 for r in self._regions if address >= r.start]
        where = min(gaps)[1] + " the nearest tensor" if gaps else "the launch has no tensors"
        raise OutOfBoundsError(
            f"{self.kernel}, program {self.programs[0]}: {access} of {size} bytes out of bounds: {where}")

    def _enter(self, access: str, region: _Region, addresses: Array, size: int, who: Array | int) -> None:
        elements = region.elements(addresses, size)
        if not isinstance(who, int) and elements.size > who.size:
            who = np.repeat(who, elements.size // who.size)
        if self._races and region.writers is not None:
            self._refuse(access, "stores to", region, elements, region.writers[elements], who)
        if access == "load":
            self._enter_readers(region, elements, who)
            return
        if self._races and region.readers is not None:
            self._refuse(access, "loads", region, elements, region.readers[elements], who)
        if region.writers is None:
            region.writers = region.blank()
        region.writers[elements] = who
        if self._races and self.together:
            if isinstance(who, int) and who == _SEVERAL:
                raise RaceError(f"{self.kernel}: all programs store to one address")
            self._refuse(access, "stores to", region, elements, region.writers[elements], who)

    def _enter_readers(self, region: _Region, elements: Array, who: Array | int) -> None:
        if region.readers is None:
            region.readers = region.blank()
        first = region.readers[elements]
        if not self.together:
            if not first.all():
                region.readers[elements[first == 0]] = who
            return
        now = np.where((first == 0) | (first == who), who, _SEVERAL).astype(first.dtype)
        region.readers[elements] = now
        if not isinstance(who, int):  # the last of those that load an element at once is in the book
            others = region.readers[elements] != now
            if others.any():
                region.readers[elements[others]] = _SEVERAL

    def _refuse(self, access: str, other: str, region: _Region, elements: Array, first: Array,
                who: Array | int) -> None:
        bad = (first != 0) & (first != who)
        if bad.any():
            at = int(np.argmax(bad))
            raise RaceError(f"{self.kernel}: program {self.programs[0]} {access}s what program {first[at] - 1} "
                            f"{other}: byte {int(elements[at]) * region.element} of a tensor's storage")


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
