"""The claims of the CPU backend, and the way from a call's tensors to the compiled library."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla.cost import cost
from portable_gla.problem import Problem, Reason, Schedule
from portable_gla_cpu import marshal, native, tiling
from portable_gla_cpu.marshal import ABSENT

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_float32 = torch.float32


class CpuBackend:
    """C kernels, float32 inside; see ``README.md`` beside this folder."""

    name = "cpu"
    priority = 100
    plain = False

    def unavailable(self) -> Sequence[Reason]:
        """Refuse where the library is missing, or the processor lacks its instructions."""
        return native.unavailable()

    def reasons_against(self, problem: Problem) -> Sequence[Reason]:
        """Refuse other devices, float64, and pins other than ``segments``."""
        reasons = []
        if problem.device.type != "cpu":
            reasons.append(Reason("device", f"serves CPU tensors, not {problem.device.type}", "move them yourself"))
        if problem.dtype not in _DTYPES:
            dtype = str(problem.dtype).removeprefix("torch.")
            reasons.append(Reason("dtype", f"computes in float32, which is too coarse for {dtype}",
                                  "use the eager backend, or cast the inputs"))
        reasons += [Reason("pin", f"cannot have {name}={value}", "pin segments to 1 or more, or leave the override")
                    for name, value in problem.pins if name != "segments" or value < 1]
        return reasons

    def schedule(self, problem: Problem) -> Schedule:
        """Count what each pass loads and stores; a state stays in a core's cache while its segment runs."""
        pins = dict(problem.pins)
        figures = cost(problem)
        forward = tiling.forward(problem.sequences, problem.heads, problem.batch * problem.tokens, problem.key_dim,
                                 problem.value_dim, torch.get_num_threads(), pins.get("segments", 0))
        groups = math.gcd(problem.q_heads, problem.k_heads, problem.v_heads,
                          problem.gate_heads if problem.gate in ("head", "channel") else problem.heads)
        backward = tiling.backward(problem.sequences, groups, problem.heads, problem.batch * problem.tokens,
                                   problem.key_dim, problem.value_dim, torch.get_num_threads(),
                                   pins.get("segments", 0))
        state = 4 * problem.heads * problem.key_dim * problem.value_dim
        rows = problem.batch * (problem.tokens // tiling.INTERVAL)
        residual = rows * state if problem.training else 0
        links = [2 * problem.sequences * plan.segments * state if plan.segments > 1 else 0
                 for plan in (forward, backward)]
        size = problem.dtype.itemsize
        keys = size * problem.key_dim * problem.batch * problem.tokens
        values = size * problem.value_dim * problem.batch * problem.tokens
        again = keys * (problem.k_heads + problem.gate_heads) + values * problem.v_heads  # what a first pass reads
        moved_forward = figures.compulsory_forward + residual + 2 * links[0] + again * (forward.segments > 1)
        moved_backward = figures.compulsory_backward + residual + again + 2 * links[1]
        moved_backward += (keys * problem.q_heads + values * problem.heads) * (backward.segments > 1)
        return Schedule(
            tiles={"chunk": tiling.CHUNK, "value_tile": -(-problem.value_dim // forward.value_tiles),
                   "segments": forward.segments, "segments_backward": backward.segments,
                   "interval": tiling.INTERVAL, "threads": forward.threads},
            launches_forward=1 if forward.segments == 1 else 3,
            launches_backward=(1 if backward.segments == 1 else 3) if problem.training else 0,
            bytes_forward=moved_forward, bytes_backward=moved_backward if problem.training else 0,
            residual_bytes=residual,
            workspace_bytes=max(self._workspace(problem, "forward", forward),
                                self._workspace(problem, "backward", backward) if problem.training else 0),
            notes=() if self.unavailable() else (f"{native.library().isa}, on {native.library().threads}",))

    def _workspace(self, problem: Problem, pass_: str, plan: marshal.Plan) -> int:
        if self.unavailable():
            return 0
        present = (1, *ABSENT[1:])
        tensors = [ABSENT] * 18
        tensors[5] = present if problem.bonus else ABSENT
        record = marshal.CALL.pack(
            problem.batch, problem.tokens, problem.heads, problem.key_dim, problem.value_dim, problem.sequences,
            marshal.GATES[problem.gate], problem.reverse, *plan, 1.0, *(x for tensor in tensors for x in tensor))
        return native.library().workspace_bytes(pass_, record)

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        """Keep the state before every 256th token of a sequence but the first: [slots, H, K, V]."""
        batch, total, _, key_dim = call.q.shape
        return (batch * (total // tiling.INTERVAL), call.heads, key_dim, call.v.shape[3]), _float32

    def forward(self, call: Call, *, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Allocate what is returned, and run the kernels."""
        q, v = call.q, call.v
        batch, tokens, _, key_dim = q.shape
        value_dim, heads, sequences = v.size(3), call.heads, call.sequences
        library = native.library()
        o = library.empty((batch, tokens, heads, value_dim), v.dtype)
        final = library.empty((sequences, heads, key_dim, value_dim)) if call.output_final_state else None
        residual = library.empty(self.residual_spec(call)[0]) if save else None
        gate, g = marshal.gate(call.g)
        plan = tiling.forward(sequences, heads, batch * tokens, key_dim, value_dim, torch.get_num_threads(),
                              call.pins.get("segments", 0))
        library.forward(marshal.CALL.pack(
            batch, tokens, heads, key_dim, value_dim, sequences, gate, call.reverse, *plan, call.scale,
            *marshal.vector(call.cu_seqlens), *marshal.tokens(q), *marshal.tokens(call.k), *marshal.tokens(v), *g,
            *marshal.matrix(call.bonus), *marshal.state(call.initial_state), *marshal.state(residual),
            *marshal.tokens(o), *marshal.state(final), *_NO_GRADIENTS))
        return o, final, residual

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """Allocate the gradients, in float32 where heads or tokens are summed, and run the kernels."""
        q, k, v = call.q, call.k, call.v
        batch, tokens, _, key_dim = q.shape
        value_dim, heads, sequences = v.size(3), call.heads, call.sequences
        library = native.library()
        gate, g = marshal.gate(call.g)
        dq, dk, dv = (_gradient(library, x, heads) for x in (q, k, v))
        groups = math.gcd(q.size(2), k.size(2), v.size(2))
        dg, dgate = None, ABSENT
        if gate == marshal.GATES["constant"]:
            dg = torch.zeros(heads, dtype=torch.float64)  # by output head
            dgate = marshal.vector(dg)
        elif call.g is not None:
            groups = math.gcd(groups, call.g.size(2))
            dg = _gradient(library, call.g, heads)
            dgate = marshal.gate(dg)[1]
        dinitial = dbonus = None
        if call.initial_state is not None:
            dinitial = torch.zeros(call.initial_state.shape, dtype=_float32)  # one state of many sums up
        if call.bonus is not None:
            dbonus = torch.zeros(call.bonus.shape, dtype=_float32)
        plan = tiling.backward(sequences, groups, heads, batch * tokens, key_dim, value_dim, torch.get_num_threads(),
                               call.pins.get("segments", 0))
        library.backward(marshal.CALL.pack(
            batch, tokens, heads, key_dim, value_dim, sequences, gate, call.reverse, *plan, call.scale,
            *marshal.vector(call.cu_seqlens), *marshal.tokens(q), *marshal.tokens(k), *marshal.tokens(v), *g,
            *marshal.matrix(call.bonus), *marshal.state(call.initial_state), *marshal.state(residual), *ABSENT, *ABSENT,
            *marshal.tokens(do), *marshal.state(dfinal_state), *marshal.tokens(dq), *marshal.tokens(dk),
            *marshal.tokens(dv), *dgate, *marshal.state(dinitial), *marshal.matrix(dbonus)))
        if gate == marshal.GATES["constant"] and dg is not None and call.g is not None:
            dg = dg.view(call.g.size(0), -1).sum(1)
        return Gradients(dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), _like(dg, call.g),
                         _like(dinitial, call.initial_state), _like(dbonus, call.bonus))

    def decode(self, call: DecodeCall) -> None:
        """Run the recurrence in place."""
        q, state = call.q, call.state
        batch, tokens, _, key_dim = q.shape
        pool, heads, _, value_dim = state.shape
        gate, g = marshal.gate(call.g)
        threads = tiling.decode(batch * tokens * heads * key_dim * value_dim, torch.get_num_threads())
        native.library().decode(marshal.DECODE_CALL.pack(
            batch, tokens, heads, key_dim, value_dim, pool, gate, threads, call.scale, *marshal.tokens(q),
            *marshal.tokens(call.k), *marshal.tokens(call.v), *g, *marshal.matrix(call.bonus),
            state.data_ptr(), marshal.DTYPES[state.dtype], 0, *state.stride(), *marshal.vector(call.slots),
            *marshal.tokens(call.out)))


_NO_GRADIENTS = ABSENT * 8


def _gradient(library: native.Native, x: Tensor, heads: int) -> Tensor:
    """Allocate the gradient of [B, T, Hx, ...]: float32 where output heads add to it."""
    return library.empty(x.shape, x.dtype if x.size(2) == heads else _float32)


def _like(gradient: Tensor | None, x: Tensor | None) -> Tensor | None:
    return None if gradient is None or x is None else gradient.to(x.dtype)


backend = CpuBackend()
