"""The oracle: the recurrence itself, token by token in float64, with its adjoint; also the backend ``reference``.

It is written to be read. Nothing in it is shared with another backend, so that no mistake is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla.cost import cost
from portable_gla.problem import Problem, Reason, Schedule


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, bonus: Tensor | None,
               scale: float) -> tuple[Tensor, Tensor]:
    """Run q, k, g [B, T, H, K] and v [B, T, H, V] from state [B, H, K, V]; return o and the final state.

    Plain differentiable operations in the dtype of its inputs: autograd through it checks the adjoint, and in float32
    or less it is the straightforward computation by which error budgets are set.
    """
    o = []
    for t in range(q.shape[1]):
        outer = k[:, t, :, :, None] * v[:, t, :, None, :]
        decayed = g[:, t, :, :, None].exp() * state
        read = decayed + outer if bonus is None else state + bonus[:, :, None] * outer
        state = decayed + outer
        o.append(scale * (q[:, t, :, :, None] * read).sum(-2))
    return (torch.stack(o, 1) if o else v.new_empty(*v.shape[:1], 0, *v.shape[2:])), state


def adjoint(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, bonus: Tensor | None, scale: float,
            do: Tensor, dstate: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of :func:`recurrence` by q, k, v, g, state and bonus."""
    before = [state]  # S_{t-1}
    for t in range(q.shape[1] - 1):
        before.append(g[:, t, :, :, None].exp() * before[-1] + k[:, t, :, :, None] * v[:, t, :, None, :])
    dq, dk, dv, dg = (torch.zeros_like(x) for x in (q, k, v, g))
    dbonus = q.new_zeros(q.shape[2:])
    for t in reversed(range(q.shape[1])):
        decay = g[:, t, :, :, None].exp()
        outer = k[:, t, :, :, None] * v[:, t, :, None, :]
        dread = scale * q[:, t, :, :, None] * do[:, t, :, None, :]
        if bonus is None:
            read = decay * before[t] + outer
            dstate = dstate + dread
            douter = dstate
        else:
            read = before[t] + bonus[:, :, None] * outer
            douter = dstate + bonus[:, :, None] * dread
            dbonus += (dread * outer).sum((0, -1))
        dq[:, t] = scale * (read * do[:, t, :, None, :]).sum(-1)
        dk[:, t] = (douter * v[:, t, :, None, :]).sum(-1)
        dv[:, t] = (douter * k[:, t, :, :, None]).sum(-2)
        dg[:, t] = (decay * before[t] * dstate).sum(-1)
        dstate = decay * dstate if bonus is None else decay * dstate + dread
    return dq, dk, dv, dg, dstate, None if bonus is None else dbonus


def expand(call: Call | DecodeCall, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give q, k, v and g of a call H heads, and g its K channels: [B, T, H, ...], contiguous."""
    batch, tokens, _, key_dim = call.q.shape
    g = call.q.new_zeros(1) if call.g is None else call.g
    if g.dim() == 1:
        g = g.expand(batch, tokens, g.shape[0])
    if g.dim() == 3:
        g = g[..., None].expand(*g.shape, key_dim)
    q, k, v, g = (_dense(x.repeat_interleave(heads // x.shape[2], 2)) for x in (call.q, call.k, call.v, g))
    return q, k, v, g


def fold(gradient: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient [B, T, H, D] over what :func:`expand` repeated: the inverse shape change, in like's dtype."""
    if like.dim() == 1:
        return gradient.sum((0, 1, 3)).reshape(like.shape[0], -1).sum(1).to(like.dtype)
    batch, tokens, heads, channels = gradient.shape
    gradient = gradient.reshape(batch, tokens, like.shape[2], heads // like.shape[2], channels).sum(3)
    if like.dim() == 3:
        gradient = gradient.sum(-1)
    return gradient.to(like.dtype)


def sequences(call: Call) -> Iterator[tuple[slice, slice, slice]]:
    """Yield (rows of the batch, tokens, states) that run as one: the whole batch, or each packed sequence."""
    if call.cu_seqlens is None:
        yield slice(None), slice(None), slice(None)
        return
    ends = call.cu_seqlens.tolist()
    for index, (start, end) in enumerate(itertools.pairwise(ends)):
        yield slice(None), slice(start, end), slice(index, index + 1)


class Oracle:
    """The backend named ``reference``: float64 whatever the input's dtype, rounded once at the end."""

    name = "reference"
    priority = -1
    plain = False

    def __init__(self, compute: torch.dtype = torch.float64) -> None:
        self._compute = compute

    def unavailable(self) -> Sequence[Reason]:
        """Serve on every machine."""
        return ()

    def reasons_against(self, problem: Problem) -> Sequence[Reason]:
        """Refuse pins other than one segment, and devices that lack float64."""
        reasons = [Reason("pin", f"the recurrence has no {name}={value}", "leave the override")
                   for name, value in problem.pins if (name, value) != ("segments", 1)]
        if problem.device.type == "mps":
            reasons.append(Reason("device", "mps has no float64", "run the oracle on CPU tensors"))
        return reasons

    def schedule(self, problem: Problem) -> Schedule:
        """Model the recurrence: the state is read and written at every token."""
        figures = cost(problem)
        state = 8 * problem.key_dim * problem.value_dim
        states = state * problem.token_heads
        return Schedule(
            tiles={"tokens": 1}, launches_forward=problem.tokens,
            launches_backward=problem.tokens if problem.training else 0,
            bytes_forward=figures.compulsory_forward + 2 * states,
            bytes_backward=figures.compulsory_backward + 4 * states if problem.training else 0, residual_bytes=0,
            workspace_bytes=states if problem.training else 3 * state * problem.sequences * problem.heads,
            notes=("float64 recurrence, token by token: right, and slow",))

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        """Keep nothing: the adjoint computes the states again."""
        return (0,), self._compute

    def forward(self, call: Call, *, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the recurrence for every sequence."""
        inputs = [x.to(self._compute) for x in expand(call, call.heads)]
        initial, bonus = self._initial(call), self._bonus(call)
        o = torch.zeros_like(inputs[2])
        final = inputs[0].new_zeros(call.state_shape)
        for rows, tokens, states in sequences(call):
            q, k, v, g = (turn(call, x[rows, tokens]) for x in inputs)
            part, final[states] = recurrence(q, k, v, g, initial[states], bonus, call.scale)
            o[rows, tokens] = turn(call, part)
        return (o.to(call.v.dtype), final.to(call.state_dtype) if call.output_final_state else None,
                inputs[0].new_empty(0) if save else None)

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """Run the adjoint for every sequence."""
        inputs = [x.to(self._compute) for x in expand(call, call.heads)]
        initial, bonus = self._initial(call), self._bonus(call)
        do = _dense(do.to(self._compute))
        dstates = inputs[0].new_zeros(call.state_shape)
        if dfinal_state is not None:
            dstates += dfinal_state
        gradients = [torch.zeros_like(x) for x in inputs]
        dbonus = None if bonus is None else torch.zeros_like(bonus)
        for rows, tokens, states in sequences(call):
            q, k, v, g = (turn(call, x[rows, tokens]) for x in inputs)
            *parts, dstates[states], dpart = adjoint(q, k, v, g, initial[states], bonus, call.scale,
                                                     turn(call, do[rows, tokens]), dstates[states].clone())
            for whole, part in zip(gradients, parts, strict=True):
                whole[rows, tokens] = turn(call, part)
            if dbonus is not None and dpart is not None:
                dbonus += dpart
        dq, dk, dv, dg = gradients
        dinitial = None
        if call.initial_state is not None:
            if call.initial_state.shape[0] == 1:
                dstates = dstates.sum(0, keepdim=True)
            dinitial = dstates.to(call.initial_state.dtype)
        return Gradients(fold(dq, call.q), fold(dk, call.k), fold(dv, call.v),
                         None if call.g is None else fold(dg, call.g), dinitial,
                         None if call.bonus is None or dbonus is None else dbonus.to(call.bonus.dtype))

    def decode(self, call: DecodeCall) -> None:
        """Run the recurrence from each sequence's row of the pool."""
        q, k, v, g = (x.to(self._compute) for x in expand(call, call.state.shape[1]))
        bonus = None if call.bonus is None else call.bonus.to(self._compute)
        slots = range(q.shape[0]) if call.slots is None else call.slots.tolist()
        for row, slot in enumerate(slots):
            if slot < 0:
                call.out[row] = 0
                continue
            one = slice(row, row + 1)
            o, state = recurrence(q[one], k[one], v[one], g[one], call.state[slot][None].to(self._compute), bonus,
                                  call.scale)
            call.out[row] = o[0]
            call.state[slot] = state[0]

    def _initial(self, call: Call) -> Tensor:
        if call.initial_state is None:
            return call.q.new_zeros(call.state_shape, dtype=self._compute)
        return _dense(call.initial_state.to(self._compute)).expand(call.state_shape)

    def _bonus(self, call: Call) -> Tensor | None:
        return None if call.bonus is None else _dense(call.bonus.to(self._compute))


def _dense(x: Tensor) -> Tensor:
    """Give x the usual strides, in dimensions of one element too: PyTorch's sums, and bits, may follow them."""
    return x.clone(memory_format=torch.contiguous_format)


def turn(call: Call, x: Tensor) -> Tensor:
    """Put tokens [B, T, ...] in the order in which the call runs them, or back."""
    return x.flip(1) if call.reverse else x


backend = Oracle()
