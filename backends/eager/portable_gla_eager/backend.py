"""The claims of the eager backend, and the walk over sequences and slabs; the mathematics is in ``slab.py``.

Each sequence is computed on its own, in slabs whose size follows from H, K and V alone: so its result cannot depend on
what else is in the batch or the pack.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla.cost import cost
from portable_gla.problem import Problem, Reason, Schedule
from portable_gla_eager import slab
from portable_gla_eager.heads import HeadMap
from portable_gla_eager.recurrent import decode

BLOCK = 16  # tokens whose pairs are formed exactly
_SLAB_ELEMENTS = 2**22  # of block states held at once


class _Sequence(NamedTuple):
    row: int  # of the batch
    start: int
    end: int
    state: int  # its index in [N, H, K, V]
    slot: int  # of its first residual state

    def slabs(self, tokens: int, reverse: bool) -> list[tuple[int, slice]]:
        """List (residual slot, tokens) in the order in which the recurrence meets them."""
        count = -(-(self.end - self.start) // tokens)
        if reverse:
            return [(self.slot + i, slice(max(self.start, self.end - (i + 1) * tokens), self.end - i * tokens))
                    for i in range(count)]
        return [(self.slot + i, slice(self.start + i * tokens, min(self.end, self.start + (i + 1) * tokens)))
                for i in range(count)]


class EagerBackend:
    """Chunked PyTorch operations; see ``README.md`` beside this file."""

    name = "eager"
    priority = 0
    plain = True

    def unavailable(self) -> Sequence[Reason]:
        """Serve wherever PyTorch runs."""
        return ()

    def reasons_against(self, problem: Problem) -> Sequence[Reason]:
        """Refuse pins other than one segment, and float64 where the device has none."""
        reasons = [Reason("pin", f"runs every sequence in one segment; {name}={value} cannot be pinned",
                          "leave the override") for name, value in problem.pins if (name, value) != ("segments", 1)]
        if problem.dtype == torch.float64 and problem.device.type == "mps":
            reasons.append(Reason("dtype", "mps has no float64", "use float32, or CPU tensors"))
        return reasons

    def schedule(self, problem: Problem) -> Schedule:
        """Model the slabs: block states and pairs go through memory, everything else is read about once."""
        tokens = _slab_tokens(problem.heads, problem.key_dim, problem.value_dim)
        figures = cost(problem)
        size = problem.state_dtype.itemsize
        state = size * problem.heads * problem.key_dim * problem.value_dim
        blocks = problem.batch * -(-problem.tokens // BLOCK)
        slabs = problem.batch * -(-problem.tokens // tokens) + (problem.sequences if problem.packed else 0)
        pairs = problem.token_heads * problem.key_dim * BLOCK * size
        return Schedule(
            tiles={"block": BLOCK, "slab": tokens, "segments": 1},
            launches_forward=slabs * 75, launches_backward=slabs * 300 if problem.training else 0,
            bytes_forward=figures.compulsory_forward + 6 * blocks * state + 3 * pairs,
            bytes_backward=figures.compulsory_backward + 14 * blocks * state + 12 * pairs if problem.training else 0,
            residual_bytes=slabs * state if problem.training else 0,
            workspace_bytes=(4 if problem.training else 2) * (tokens // BLOCK) * state,
            notes=("launches and bytes are estimates: PyTorch's operations choose their own kernels",))

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        """Keep the state before every slab: [slots, H, K, V]."""
        _, heads, key_dim, value_dim = call.state_shape
        tokens = _slab_tokens(heads, key_dim, value_dim)
        total = call.q.shape[1]
        if call.cu_seqlens is None:
            slots = call.q.shape[0] * ((total + tokens - 1) // tokens)
        else:
            slots = call.sequences + total // tokens
        return (slots, heads, key_dim, value_dim), call.state_dtype

    def forward(self, call: Call, *, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Walk every sequence from its first slab to its last."""
        heads = HeadMap(call)
        shape, dtype = self.residual_spec(call)
        residual = call.q.new_zeros(shape, dtype=dtype) if save else None
        o = call.v.new_empty(*call.q.shape[:2], call.heads, call.v.shape[3])
        final = call.q.new_empty(call.state_shape, dtype=dtype) if call.output_final_state else None
        bonus = None if call.bonus is None else call.bonus.to(dtype)
        tokens = _slab_tokens(*call.state_shape[1:])
        for sequence in _sequences(call, tokens):
            state = _initial(call, sequence.state)
            block = _block(call, sequence)
            for slot, part in sequence.slabs(tokens, call.reverse):
                if residual is not None:
                    residual[slot] = state
                inputs = heads.load(call, sequence.row, part, block)
                out, state = slab.forward(inputs, state, bonus)
                o[sequence.row, part] = heads.unblock(call, call.scale * out, part).to(o.dtype)
            if final is not None:
                final[sequence.state] = state
        return o, final, residual

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """Walk every sequence from its last slab to its first, from the saved states."""
        heads = HeadMap(call)
        dtype = call.state_dtype
        bonus = None if call.bonus is None else call.bonus.to(dtype)
        dbonus = None if bonus is None else torch.zeros_like(bonus)
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (call.q, call.k, call.v))
        dg = heads.empty_gate_gradient(call)
        dstates = call.q.new_zeros(call.state_shape, dtype=dtype)
        if dfinal_state is not None:
            dstates.copy_(dfinal_state)
        tokens = _slab_tokens(*call.state_shape[1:])
        for sequence in _sequences(call, tokens):
            dstate = dstates[sequence.state]
            block = _block(call, sequence)
            for slot, part in reversed(sequence.slabs(tokens, call.reverse)):
                inputs = heads.load(call, sequence.row, part, block)
                found = slab.backward(inputs, residual[slot], bonus,
                                      call.scale * heads.load_blocks(call, do, sequence.row, part, block), dstate)
                for whole, gradient in ((dq, found.q), (dk, found.k), (dv, found.v)):
                    heads.store(call, whole, gradient, sequence.row, part)
                if dg is not None:
                    heads.store_gate(call, dg, found.g, sequence.row, part)
                if dbonus is not None and found.bonus is not None:
                    dbonus += found.bonus
                dstate = found.state
            dstates[sequence.state] = dstate
        dinitial = None
        if call.initial_state is not None:
            if call.initial_state.shape[0] == 1:
                dstates = dstates.sum(0, keepdim=True)
            dinitial = dstates.to(call.initial_state.dtype)
        return Gradients(dq, dk, dv, None if dg is None or call.g is None else dg.to(call.g.dtype), dinitial,
                         None if dbonus is None or call.bonus is None else dbonus.to(call.bonus.dtype))

    def decode(self, call: DecodeCall) -> None:
        """Run the recurrence token by token, all sequences at once."""
        decode(call)


def _slab_tokens(heads: int, key_dim: int, value_dim: int) -> int:
    blocks = min(64, max(16, _SLAB_ELEMENTS // (heads * key_dim * value_dim)))
    return BLOCK * blocks


def _sequences(call: Call, tokens: int) -> Iterator[_Sequence]:
    length = call.q.shape[1]
    if call.cu_seqlens is None:
        for row in range(call.q.shape[0]):
            yield _Sequence(row, 0, length, row, row * -(-length // tokens))
        return
    ends = call.cu_seqlens.tolist()  # on an accelerator this synchronises: the plain path needs the lengths
    for index, (start, end) in enumerate(itertools.pairwise(ends)):
        # Of ceil(length / tokens) slots each, these starts never overlap and end by N + T // tokens.
        yield _Sequence(0, start, end, index, start // tokens + index)


def _initial(call: Call, index: int) -> Tensor:
    if call.initial_state is None:
        return call.q.new_zeros(call.state_shape[1:], dtype=call.state_dtype)
    row = 0 if call.initial_state.shape[0] == 1 else index
    return call.initial_state[row].to(call.state_dtype)


def _block(call: Call, sequence: _Sequence) -> int:
    """Choose the block: products of positive gates must not overflow where the recurrence would not."""
    if call.g is None or sequence.start == sequence.end:
        return BLOCK
    g = call.g if call.g.dim() == 1 else call.g[sequence.row, sequence.start:sequence.end]
    return 1 if BLOCK * float(g.max()) > 40.0 else BLOCK


backend = EagerBackend()
