"""The copy bandwidth of the device: what memory gives a kernel that does nothing else."""

from __future__ import annotations

from typing import Any

import torch

from hardware_ci import documents
from portable_gla.cli import timing

_BYTES = 2**30  # of one array: far past any cache
_BRIEF = 2**28


def copy(device: torch.device, brief: bool) -> dict[str, Any]:
    """Copy a large array into another on the same device; GB/s count the bytes read and those written."""
    size = _BRIEF if brief else _BYTES
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times, failed = timing.interleaved({"copy": lambda: target.copy_(source)}, device, 10, 5.0, lambda: None,
                                       timing.cold(device))
    if failed:
        raise RuntimeError(f"the copy that measures bandwidth failed: {failed['copy']}")
    found = times["copy"]
    return {"bytes": 2 * size, "gb_s": documents.short(2 * size / found.median / 1e9),
            "samples": [documents.short(sample) for sample in found.samples]}
