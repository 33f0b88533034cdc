"""The architectures that the kernels are compiled for, and what one multiprocessor of each holds."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Limits of one multiprocessor (compute unit); memory in bytes."""

    shared: int  # that one program may take
    shared_total: int
    registers: int  # of 32 bits
    most_registers: int  # a thread may have
    threads: int
    programs_most: int
    lanes: int  # threads of a warp

    def programs(self, registers: int, shared: int, warps: int) -> int:
        """Return how many programs fit at once."""
        taken = -(-registers // 8) * 8 * self.lanes * warps
        return min(self.registers // max(1, taken), self.shared_total // max(1, shared + 1024),
                   self.threads // (self.lanes * warps), self.programs_most)


_TABLE = {
    # NVIDIA CUDA C++ Programming Guide 12.9, table "Technical Specifications per Compute Capability".
    "sm_80": Limits(163 * 1024, 164 * 1024, 65536, 255, 2048, 32, 32),
    "sm_86": Limits(99 * 1024, 100 * 1024, 65536, 255, 1536, 16, 32),
    "sm_89": Limits(99 * 1024, 100 * 1024, 65536, 255, 1536, 24, 32),
    "sm_90": Limits(227 * 1024, 228 * 1024, 65536, 255, 2048, 32, 32),
    "sm_100": Limits(227 * 1024, 228 * 1024, 65536, 255, 2048, 32, 32),
    "sm_120": Limits(99 * 1024, 100 * 1024, 65536, 255, 1536, 24, 32),
    # AMD CDNA2 and CDNA3 instruction set documents: 64 KiB of LDS, 4 x 512 vector registers of 64 lanes.
    "gfx90a": Limits(64 * 1024, 65 * 1024, 4 * 512 * 64, 512, 2048, 32, 64),
    "gfx942": Limits(64 * 1024, 65 * 1024, 4 * 512 * 64, 512, 2048, 32, 64),
}

TARGETS = tuple(_TABLE)


def limits(target: str) -> Limits:
    """Return the limits of a target."""
    return _TABLE[target]
