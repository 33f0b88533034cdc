"""The parallel form, forward and backward, slab by slab."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from portable_gla.backend import Call, Gradients
from portable_gla_ascend.operations.layout import Slab, blocks, rows_at_once
from portable_gla_ascend.operations.pairs_channel import ChannelPairs
from portable_gla_ascend.operations.pairs_scalar import ScalarPairs
from portable_gla_ascend.operations.states import advance, retreat


class Work:
    """A slab's operands, its pairs, and what its states gain; n = rows · H."""

    def __init__(self, call: Call, slab: Slab) -> None:
        self.call, self.slab, self.heads = call, slab, call.heads
        self.operand = torch.bfloat16 if call.q.dtype == torch.bfloat16 else torch.float32
        self.q, self.k, self.v = (self.load(x) for x in (call.q, call.k, call.v))
        bonus = None if call.bonus is None else call.bonus.float().expand(slab.rows, -1, -1).flatten(0, 1)
        self.bonus = bonus
        self.pairs: ChannelPairs | ScalarPairs
        if call.g is not None and call.g.dim() == 4:
            self.pairs = ChannelPairs(self.q, self.k, self._gate(call.g), call.scale, bonus)
        else:
            g = call.g
            if g is not None:
                g = self._gate((g if g.dim() == 3 else g.expand(*call.q.shape[:2], -1))[..., None])[..., 0]
            self.pairs = ScalarPairs(self.q, self.k, g, call.scale, bonus)
        self.decay = self.by_head(self.pairs.total)[..., None]
        self.added = self.by_head(torch.bmm(self.pairs.k_out.mT, self.v).float())

    def load(self, x: Tensor) -> Tensor:
        """Load [B, T, Hx, D] as operands [n, 64, D]."""
        return self._spread(self.slab.load(x)).to(self.operand)

    def _gate(self, g: Tensor) -> Tensor:
        return self._spread(self.slab.load(g))

    def _spread(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.heads // x.shape[1], 1).flatten(0, 1)

    def by_head(self, x: Tensor) -> Tensor:
        """View [n, ...] as [rows, H, ...]."""
        return torch.unflatten(x, 0, (-1, self.heads))

    def output(self, before: Tensor) -> Tensor:
        """Return o [rows, H, 64, V], from the states before the rows."""
        from_states = torch.bmm(self.pairs.q_in, before.flatten(0, 1).to(self.operand))
        return self.by_head(torch.baddbmm(from_states, self.pairs.scores, self.v))

    def fold(self, whole: Tensor, x: Tensor) -> None:
        """Sum a gradient [n, 64, D] over the heads that share a tensor, and store it."""
        x = self.by_head(x)
        if whole.shape[2] != self.heads:
            x = torch.unflatten(x, 1, (whole.shape[2], -1)).sum(2, dtype=torch.float32)
        self.slab.store(whole, x)


def forward(call: Call) -> tuple[Tensor, Tensor | None]:
    """Return o [B, T, H, V] in q's dtype and the final state [N, H, K, V], None unless asked for."""
    o = call.v.new_empty(*call.q.shape[:2], call.heads, call.v.shape[3])
    final = call.q.new_empty(call.state_shape, dtype=torch.float32) if call.output_final_state else None
    rows = rows_at_once(call)
    with exact_products(call.q):
        for block in blocks(call):
            carry = _initial(call, block.order, len(block.sequences))
            for slab in block.slabs(rows):
                work = Work(call, slab)
                slab.store(o, work.output(advance(slab, work.added, work.decay, carry)))
            if final is not None:
                final[block.order] = carry
    return o, final


def backward(call: Call, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
    """Return the gradients; the states are computed again, from those before each slab."""
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (call.q, call.k, call.v))
    dg = None if call.g is None else call.g.new_empty(
        call.g.shape if call.g.dim() > 1 else (*call.q.shape[:2], *call.g.shape),
        dtype=call.g.dtype if call.g.dim() > 1 else torch.float32)
    dbonus = None if call.bonus is None else torch.zeros_like(call.bonus, dtype=torch.float32)
    dinitial = call.q.new_empty(call.state_shape, dtype=torch.float32)
    rows = rows_at_once(call)
    with exact_products(call.q):
        for block in blocks(call):
            order, slabs = block.order, block.slabs(rows)
            carry, starts = _initial(call, order, len(block.sequences)), []
            for slab in slabs:
                starts.append(carry.clone())
                if slab is not slabs[-1]:
                    work = Work(call, slab)
                    advance(slab, work.added, work.decay, carry)
            dcarry = torch.zeros_like(carry) if dfinal_state is None else dfinal_state[order].to(
                torch.float32, copy=True)
            for slab in reversed(slabs):
                work = Work(call, slab)
                before = advance(slab, work.added, work.decay, starts.pop())
                _gradients(work, before, work.load(do), dcarry, (dq, dk, dv, dg), dbonus)
            dinitial[order] = dcarry
    return _finish(call, dq, dk, dv, dg, dinitial, dbonus)


def _gradients(work: Work, before: Tensor, do: Tensor, dcarry: Tensor,
               wholes: tuple[Tensor, Tensor, Tensor, Tensor | None], dbonus: Tensor | None) -> None:
    """Store the gradients of a slab; dcarry [sequences, H, K, V] moves from behind it to before it."""
    pairs, operand = work.pairs, work.operand
    after = retreat(work.slab, work.by_head(torch.bmm(pairs.q_in.mT, do).float()), work.decay, dcarry)
    through = (before * after).sum(-1, dtype=torch.float32).flatten(0, 1)
    if isinstance(pairs, ScalarPairs):
        through = through.sum(-1, keepdim=True)
    before, after = (x.flatten(0, 1).to(operand) for x in (before, after))
    wide = isinstance(pairs, ScalarPairs) and pairs.gated
    dscores = torch.bmm(do.float(), work.v.float().mT) if wide else torch.bmm(do, work.v.mT)
    dv = torch.baddbmm(torch.bmm(pairs.k_out, after), pairs.scores.mT, do)
    own = work.call.scale * dscores.diagonal(dim1=1, dim2=2)[..., None].float()
    found_q, found_k, found_g = pairs.backward(
        dscores, torch.bmm(do, before.mT).float(), torch.bmm(work.v, after.mT).float(), pairs.total * through)
    if work.bonus is not None and dbonus is not None:
        dbonus += work.by_head((own * work.q * work.k).sum(1)).sum(0)
        own = own * work.bonus[:, None]
    if work.bonus is not None or isinstance(pairs, ChannelPairs):
        found_q, found_k = found_q + own * work.k, found_k + own * work.q
    for whole, found in zip(wholes, (found_q, found_k, dv, found_g), strict=True):
        if whole is not None and found is not None:
            work.fold(whole if whole.dim() == 4 else whole[..., None], found)


def _finish(call: Call, dq: Tensor, dk: Tensor, dv: Tensor, dg: Tensor | None, dinitial: Tensor,
            dbonus: Tensor | None) -> Gradients:
    if call.g is not None and dg is not None and call.g.dim() == 1:
        dg = dg.sum((0, 1)).to(call.g.dtype)
    initial = call.initial_state
    if initial is not None and initial.shape[0] == 1:
        dinitial = dinitial.sum(0, keepdim=True)
    return Gradients(dq, dk, dv, dg, None if initial is None else dinitial.to(initial.dtype),
                     None if call.bonus is None or dbonus is None else dbonus.to(call.bonus.dtype))


def _initial(call: Call, order: Tensor | slice, count: int) -> Tensor:
    """Return a block's states before its first tokens, in memory of their own."""
    if call.initial_state is None:
        return call.q.new_zeros(count, *call.state_shape[1:], dtype=torch.float32)
    if call.initial_state.shape[0] == 1:
        return call.initial_state.expand(count, -1, -1, -1).to(torch.float32, copy=True).contiguous()
    return call.initial_state[order].to(torch.float32, copy=True).contiguous()


@contextlib.contextmanager
def exact_products(q: Tensor) -> Iterator[None]:
    """Keep float32 products in float32: ``torch.npu.matmul.allow_hf32`` would round their operands to 12 bits."""
    switch = getattr(torch.get_device_module(q.device), "matmul", None) if q.device.type == "npu" else None
    if switch is None or not getattr(switch, "allow_hf32", False):
        yield
        return
    switch.allow_hf32 = False
    try:
        yield
    finally:
        switch.allow_hf32 = True
