"""Between a call's tensors, [B, T, Hx, D] with their own head counts, and blocks [H, n, c, D] of one slab."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from portable_gla.backend import Call
from portable_gla_eager.slab import Slab


@dataclass(frozen=True)
class HeadMap:
    """Expands and sums heads slab by slab, so that nothing of T tokens is ever expanded."""

    heads: int
    compute: torch.dtype

    def __init__(self, call: Call) -> None:
        object.__setattr__(self, "heads", call.heads)
        object.__setattr__(self, "compute", call.state_dtype)

    def load(self, call: Call, row: int, part: slice, block: int) -> Slab:
        """Load q, k, v and the decay exp(g) of a slab."""
        q, k, v = (self.load_blocks(call, x, row, part, block) for x in (call.q, call.k, call.v))
        if call.g is None:
            return Slab(q, k, v, torch.ones_like(k))
        g = call.g if call.g.dim() > 1 else call.g.expand(*call.q.shape[:2], -1)
        g = g if g.dim() == 4 else g[..., None]
        decay = self.load_blocks(call, g, row, part, block).exp().expand_as(k)
        return Slab(q, k, v, decay)

    def load_blocks(self, call: Call, x: Tensor, row: int, part: slice, block: int) -> Tensor:
        """Load [B, T, Hx, D] as [H, n, block, D] in the compute dtype, in the recurrence's order, padded with zeros."""
        x = x[row, part].to(self.compute).transpose(0, 1)
        if call.reverse:
            x = x.flip(1)
        tokens = x.shape[1]
        x = torch.nn.functional.pad(x, (0, 0, 0, -tokens % block))
        return self._repeat(x.reshape(x.shape[0], -1, block, x.shape[2]))

    def unblock(self, call: Call, x: Tensor, part: slice) -> Tensor:
        """Turn [H, n, block, D] into [T, H, D] in the call's order."""
        x = x.flatten(1, 2)[:, :part.stop - part.start].transpose(0, 1)
        return x.flip(0) if call.reverse else x

    def store(self, call: Call, whole: Tensor, gradient: Tensor, row: int, part: slice) -> None:
        """Sum a slab's gradient over shared heads into its place."""
        whole[row, part] = self._fold(gradient, whole.shape[2], call, part).to(whole.dtype)

    def empty_gate_gradient(self, call: Call) -> Tensor | None:
        """Allocate dg; a constant gate's is summed over all tokens, so in the compute dtype."""
        if call.g is None:
            return None
        if call.g.dim() == 1:
            return call.g.new_zeros(call.g.shape, dtype=self.compute)
        return torch.empty_like(call.g, memory_format=torch.contiguous_format)

    def store_gate(self, call: Call, dg: Tensor, gradient: Tensor, row: int, part: slice) -> None:
        """Sum a slab's dg over what the gate shares: channels, heads, tokens."""
        if dg.dim() == 4:
            self.store(call, dg, gradient, row, part)
            return
        gradient = self._fold(gradient.sum(-1, keepdim=True), dg.shape[-1], call, part)[..., 0]
        if dg.dim() == 3:
            dg[row, part] = gradient.to(dg.dtype)
        else:
            dg += gradient.sum(0)

    def _repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.heads // x.shape[0], 0)

    def _fold(self, x: Tensor, count: int, call: Call, part: slice) -> Tensor:
        return self.unblock(call, x.reshape(count, -1, *x.shape[1:]).sum(1), part)
