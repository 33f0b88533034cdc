"""Which sequence and chunk a packed slot stands for."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_places(cu_seqlens: Tensor, unit: int, slots: int) -> Tensor:
    """Return [slots, 2] int32: a slot's sequence, and its chunk of ``unit`` tokens there; without a host read.

    Sequence n, which starts at token s, owns the slots from s // unit + n on. A slot that no chunk has gets one past
    its sequence's end.
    """
    firsts = cu_seqlens[:-1].to(torch.int64) // unit + torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    at = torch.arange(slots, device=cu_seqlens.device)
    n = torch.searchsorted(firsts, at, right=True) - 1
    return torch.stack((n, at - firsts[n]), 1).to(torch.int32)
