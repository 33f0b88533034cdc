"""What is compiled for which device, and what one multiprocessor of each holds."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

ELSEWHERE = os.environ.get("PORTABLE_GLA_VOLTA_ELSEWHERE", "0") not in ("", "0")
"""Whether NVIDIA GPUs newer than these serve too, by the driver's translation of compute_70: slow, to check kernels."""

PORTABLE = "compute_70"


class Limits(NamedTuple):
    """Limits of one multiprocessor; memory in bytes, of shared memory what a block may ask for."""

    shared: int
    registers: int  # of 32 bits
    most_registers: int  # a thread may have
    threads: int
    blocks_most: int

    def blocks(self, registers: int, shared: int, threads: int) -> int:
        """Return how many blocks fit at once: registers come in 256 a warp, shared memory in 256 bytes."""
        warps = -(-threads // 32)
        taken = -(-registers * 32 // 256) * 256 * warps
        return min(self.registers // max(1, taken), self.shared // max(1, -(-shared // 256) * 256),
                   self.threads // (32 * warps), self.blocks_most)


# NVIDIA CUDA C++ Programming Guide 12.9, table "Technical Specifications per Compute Capability".
_LIMITS = {
    "sm_70": Limits(96 * 1024, 65536, 255, 2048, 32),
    "sm_75": Limits(64 * 1024, 65536, 255, 1024, 16),
}

TARGETS = tuple(_LIMITS)


def limits(target: str) -> Limits:
    """Return the limits of a target."""
    return _LIMITS[target]


def of(arch: str) -> str | None:
    """Return what is compiled for a device's architecture (``sm_70``); None: there are no kernels for it."""
    if arch in TARGETS:
        return arch
    newer = re.fullmatch(r"sm_(\d+)", arch)
    return PORTABLE if ELSEWHERE and newer is not None and int(newer[1]) > 75 else None
