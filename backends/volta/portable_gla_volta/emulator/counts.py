"""What launches do to memory, counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """One place in a kernel's source that loads or stores, summed over a launch.

    ``instructions`` are a warp's, each for up to 32 lanes. Of shared memory, ``wavefronts`` are the cycles that the 32
    banks take, ``least`` what they would take without a conflict, and ``words`` the different words of 4 bytes that
    the instructions touch. Of global memory, ``sectors`` are the different 32 bytes. ``ragged`` instructions were put
    together from accesses of lanes that did not all make the same number of them, which may be wrong.
    """

    place: str  # file:line
    space: str  # "shared" or "global"
    store: bool
    bytes: int  # a lane's
    lanes: int
    instructions: int
    wavefronts: int
    least: int
    words: int
    sectors: int
    ragged: int


@dataclass(frozen=True)
class Launch:
    """One launch: what its warps did, and the bytes of global memory, with each address once in ``*_once``."""

    kernel: str
    defines: tuple[tuple[str, int], ...]
    grid: int
    sites: tuple[Site, ...]
    barriers: int  # of blocks
    multiplications: int  # mma of a warp, 1,024 multiply-adds each
    shuffles: int
    loaded: int
    stored: int
    loaded_once: int
    stored_once: int

    @property
    def wavefronts(self) -> int:
        """Cycles of the shared-memory banks."""
        return sum(site.wavefronts for site in self.sites)

    @property
    def least(self) -> int:
        """Cycles they would take without a conflict."""
        return sum(site.least for site in self.sites)

    @property
    def ragged(self) -> int:
        """Shared-memory instructions put together by guess."""
        return sum(site.ragged for site in self.sites if site.space == "shared")


def table(launches: Iterable[Launch]) -> str:
    """Show the shared-memory accesses of launches, place by place, the worst first."""
    rows: dict[tuple[str, str, bool, int], list[int]] = {}
    for launch in launches:
        for site in launch.sites:
            if site.space == "shared":
                row = rows.setdefault((launch.kernel, site.place, site.store, site.bytes), [0, 0, 0, 0])
                for n, value in enumerate((site.instructions, site.wavefronts, site.least, site.ragged)):
                    row[n] += value
    lines = [f"{'kernel':24} {'place':28} {'':5} {'bytes':>5} {'instructions':>12} {'wavefronts':>10} {'least':>10}"]
    for (kernel, place, store, size), (made, fronts, least, ragged) in sorted(
            rows.items(), key=lambda item: item[1][2] - item[1][1]):
        lines.append(f"{kernel:24} {place:28} {'store' if store else 'load':5} {size:5} {made:12} {fronts:10} "
                     f"{least:10}{f' ragged {ragged}' if ragged else ''}")
    return "\n".join(lines)
