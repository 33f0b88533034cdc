"""From a call's tensors to launches. Who runs them is a parameter: the device, the emulator, or a list of launches."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla.problem import Problem
from portable_gla.segments import Segments
from portable_gla_volta import arguments as marshal
from portable_gla_volta import configurations
from portable_gla_volta.arguments import DecodeArguments, GradientsArguments, ScanArguments, Sequences, SweepArguments
from portable_gla_volta.configurations import CHUNK, SCAN
from portable_gla_volta.folding import Folds
from portable_gla_volta.kernel import Kernel, Runner

_SCANNED = 1024  # elements of a state that a program of the scan has


class Launcher:
    """One call on one runner."""

    def __init__(self, runner: Runner, call: Call, segments: Segments) -> None:
        self.runner, self.call, self.segments = runner, call, segments
        self.heads, self.count = call.heads, call.sequences
        self.batch, self.tokens, _, self.key_dim = call.q.shape
        self.value_dim = call.v.shape[3]
        self.packed = call.cu_seqlens is not None
        self.channel = call.g is not None and call.g.dim() == 4
        self.single = call.q.dtype == torch.float32
        self.shape = configurations.sweep(runner.target, self.key_dim, self.value_dim, self.channel)
        self.cu_seqlens = None if call.cu_seqlens is None else call.cu_seqlens.to(torch.int32).contiguous()
        self.bonus = None if call.bonus is None else call.bonus.float().contiguous()
        self.initial = _readable(call.initial_state)
        # What every kernel may touch; launches add their own.
        self.tensors = [x for x in (call.q, call.k, call.v, call.g, self.cu_seqlens, self.bonus, self.initial)
                        if x is not None]

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.call.q.new_empty(shape, dtype=dtype)

    def _launch(self, kernel: Kernel, grid: int, given: ctypes.Structure, *tensors: Tensor | None) -> None:
        if grid:
            self.runner.launch(kernel, grid, given, [*self.tensors, *(x for x in tensors if x is not None)])

    def _slots(self, unit: int) -> int:
        """Count the pieces of ``unit`` tokens that sequences may have; see ``csrc/common.cuh``."""
        if self.packed:
            return self.tokens // unit + self.count
        return self.batch * math.ceil(self.tokens / unit)

    def _sequences(self, unit: int) -> Sequences:
        return Sequences(marshal.pointer(self.cu_seqlens), self.tokens, self.count, self.heads, unit,
                         self.call.reverse, 0)

    def _sweep(self, forward: bool, d: Tensor | None, links: Tensor) -> SweepArguments:
        """Return what all walks along a segment take: of k and v, or against time of q and do."""
        call = self.call
        x, y = (call.k, call.v) if forward else (call.q, d)
        return SweepArguments(
            sequences=self._sequences(int(self.segments.unit)), x=marshal.tokens(x, self.heads),
            y=marshal.tokens(y, self.heads), g=marshal.tokens(call.g, self.heads), links=marshal.state(links),
            scale=call.scale, key_dim=self.key_dim, value_dim=self.value_dim, forward=forward,
            exclusive=self.bonus is not None)

    def _swept(self, kernel: Kernel) -> tuple[Kernel, int]:
        """Return a kernel with the programs that it takes."""
        wide = 32 if self.single else self.shape.wide
        return kernel, self._slots(self.segments.unit) * self.heads * math.ceil(self.value_dim / wide)

    def _states(self) -> tuple[Kernel, int]:
        return self._swept(configurations.exact(self.shape.keys, self.channel, False) if self.single
                           else configurations.states(self.shape, self.channel))

    def _link(self, forward: bool, d: Tensor | None, edge: Tensor | None, links: Tensor) -> None:
        """Fill the states between segments: a walk over each segment, then a scan over their results."""
        decays = self._empty(links.shape[0], self.heads, self.key_dim if self.channel else 1)
        given = self._sweep(forward, d, links)
        given.summary, given.decays = 1, decays.data_ptr()
        self._launch(*self._states(), given, links, decays, d)
        grid = self.count * self.heads * math.ceil(self.key_dim * self.value_dim / _SCANNED)
        self._launch(SCAN, grid, ScanArguments(
            self._sequences(int(self.segments.unit)), marshal.state(links), marshal.state(edge), decays.data_ptr(),
            self.key_dim, self.value_dim, forward, self.channel), links, decays, edge)

    def forward(self, links: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return o and the final state; fill ``links`` with the states between segments."""
        call = self.call
        o = self._empty(self.batch, self.tokens, self.heads, self.value_dim, dtype=call.q.dtype)
        final = self._empty(*call.state_shape) if call.output_final_state else None
        if not self._slots(self.segments.unit):  # not a token
            if final is not None:
                final.copy_(call.initial_state) if call.initial_state is not None else final.zero_()
            return o, final
        if self.segments.several:
            self._link(True, None, self.initial, links)
        given = self._sweep(True, None, links)
        given.q, given.o = marshal.tokens(call.q, self.heads), marshal.tokens(o, self.heads)
        given.bonus = marshal.pointer(self.bonus)
        given.first, given.last = marshal.state(self.initial), marshal.state(final)
        self._launch(*self._swept(
            configurations.exact(self.shape.keys, self.channel, True) if self.single
            else configurations.forward(self.shape, self.channel)), given, links, o, final)
        return o, final

    def backward(self, links: Tensor, d: Tensor, dfinal: Tensor | None) -> Gradients:
        """Return the gradients, from ``d``, that of o."""
        call = self.call
        dfinal = _readable(dfinal)
        if not self._slots(self.segments.unit):
            return self._untouched(dfinal)
        back_links = links
        if self.segments.several:
            back_links = torch.empty_like(links)
            self._link(False, d, dfinal, back_links)
        slots, groups, parts = self._slots(CHUNK), math.ceil(self.value_dim / 16), self.shape.warps_k
        kept = [self._empty(slots, self.heads, groups * 16, self.shape.keys, dtype=call.q.dtype) for _ in range(2)]
        units = [None if self.single else self._empty(slots, self.heads, groups, parts) for _ in range(2)]
        dinitial = None if call.initial_state is None else self._empty(*call.state_shape)
        for forward, edge, last, between, chunks, unit in (
                (True, self.initial, None, links, kept[0], units[0]),
                (False, dfinal, dinitial, back_links, kept[1], units[1])):
            given = self._sweep(forward, d, between)
            given.first, given.last = marshal.state(edge), marshal.state(last)
            if last is not None:
                given.last.row = last.stride(0)
            given.kept, given.kept_units = chunks.data_ptr(), marshal.pointer(unit)
            self._launch(*self._states(), given, d, edge, last, between, chunks, unit)
        return self._gradients(d, slots, kept, units, dinitial)

    def _gradients(self, d: Tensor, slots: int, kept: Sequence[Tensor], units: Sequence[Tensor | None],
                   dinitial: Tensor | None) -> Gradients:
        call = self.call
        kernel = configurations.gradients(self.shape.keys, self.channel, call.q.dtype)
        width = configurations.gradient_width(self.key_dim)
        tiles = math.ceil(self.key_dim / width)
        dq, dk, dv = (self._gradient(x) for x in (call.q, call.k, call.v))
        dg, dg_tokens, dg_part = self._gate_gradient(tiles, slots)
        dbonus = None if call.bonus is None else self._empty(slots, self.heads, self.key_dim)
        every = [marshal.tokens(x, self.heads) for x in (call.q, call.k, call.v, d, call.g, dq, dk, dv)]
        given = GradientsArguments(
            self._sequences(CHUNK), *every, dg_tokens, dg_part, marshal.pointer(self.bonus), marshal.pointer(dbonus),
            kept[0].data_ptr(), kept[1].data_ptr(), marshal.pointer(units[0]), marshal.pointer(units[1]), call.scale,
            self.key_dim, self.value_dim, call.g is not None and call.g.dim() == 1, math.ceil(self.value_dim / 16),
            self.shape.warps_k)
        grid = slots * self.heads * (tiles + math.ceil(self.value_dim / width))
        self._launch(kernel, grid, given, d, dq, dk, dv, dg, dbonus, *kept, *units)
        folds = Folds()
        found = Gradients(
            _folded(folds, dq, call.q), _folded(folds, dk, call.k), _folded(folds, dv, call.v),
            self._folded_gate(folds, dg), self._folded_initial(folds, dinitial),
            None if dbonus is None or call.bonus is None else folds.add(
                dbonus, call.bonus.dtype, tuple(call.bonus.shape), (0,)))
        folds.launch(self.runner)
        return _in_dtypes(found, call)

    def _gradient(self, like: Tensor) -> Tensor:
        """Allocate a gradient: in float32 for each output head where heads are shared, to be summed."""
        dtype = like.dtype if like.shape[2] == self.heads else torch.float32
        return self._empty(self.batch, self.tokens, self.heads, like.shape[3], dtype=dtype)

    def _gate_gradient(self, parts: int, slots: int) -> tuple[Tensor | None, marshal.Tokens, int]:
        """Allocate dg; per head a part for each tile of K, constant gates a sum for each chunk besides."""
        g = self.call.g
        if g is None:
            return None, marshal.Tokens(), 0
        if self.channel:
            found = self._gradient(g)
            return found, marshal.tokens(found, self.heads), 0
        if g.dim() == 1:
            found = self._empty(parts, slots, self.heads)
            return found, marshal.Tokens(data=found.data_ptr(), group=1), slots * self.heads
        found = self._empty(parts, self.batch, self.tokens, self.heads)
        return found, marshal.tokens(found[0], self.heads), found.stride(0)

    def _folded_gate(self, folds: Folds, found: Tensor | None) -> Tensor | None:
        g = self.call.g
        if found is None or g is None:
            return None
        if self.channel:
            return _folded(folds, found, g)
        if g.dim() == 1:
            parts, chunks, _ = found.shape
            shared = found.view(parts * chunks, g.shape[0], self.heads // g.shape[0])
            return folds.add(shared, g.dtype, tuple(g.shape), (0, 2))
        return folds.add(found.view(found.shape[0], -1, self.heads // g.shape[2]), g.dtype, tuple(g.shape), (0, 2))

    def _folded_initial(self, folds: Folds, found: Tensor | None) -> Tensor | None:
        initial = self.call.initial_state
        if found is None or initial is None:
            return None
        if initial.shape[0] == 1:
            return folds.add(found, initial.dtype, tuple(initial.shape), (0,))
        return found

    def _untouched(self, dfinal: Tensor | None) -> Gradients:
        """Return the gradients of a call without a token: the final state is the initial one."""
        call = self.call
        zeros = [None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format)
                 for x in (call.q, call.k, call.v, call.g, call.bonus)]
        dinitial = None
        if call.initial_state is not None:
            dinitial = call.q.new_zeros(call.state_shape, dtype=torch.float32) if dfinal is None else (
                dfinal.to(torch.float32, copy=True).contiguous())
        dq, dk, dv, dg, dbonus = zeros
        assert dq is not None and dk is not None and dv is not None
        folds = Folds()
        found = Gradients(dq, dk, dv, dg, self._folded_initial(folds, dinitial), dbonus)
        folds.launch(self.runner)
        return _in_dtypes(found, call)


def _readable(state: Tensor | None) -> Tensor | None:
    """Return a state in numbers that the kernels read: all but float64."""
    return state if state is None or state.dtype in marshal.KINDS else state.float()


def _in_dtypes(found: Gradients, call: Call) -> Gradients:
    """Cast what kernels do not write in a dtype of their own, once it is there."""
    for name in ("initial_state", "bonus"):
        given, gradient = getattr(call, name), getattr(found, name)
        if given is not None and gradient is not None:
            found = found._replace(**{name: gradient.to(given.dtype)})
    return found


def _folded(folds: Folds, found: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient [B, T, H, D] over the output heads that share a head."""
    if found.shape == like.shape:
        return found
    shared = found.view(*found.shape[:2], like.shape[2], found.shape[2] // like.shape[2], like.shape[3])
    return folds.add(shared, like.dtype, tuple(like.shape), (3,))


def decode(runner: Runner, call: DecodeCall) -> None:
    """Run one decoding step."""
    batch, count, _, key_dim = call.q.shape
    value_dim, heads = call.v.shape[3], call.state.shape[1]
    if not batch or not count:
        return
    state = call.state if call.state.dtype in marshal.KINDS else call.state.float()
    bonus = None if call.bonus is None else call.bonus.float().contiguous()
    described = marshal.state(state)
    described.row = state.stride(0)
    slots = call.slots
    given = DecodeArguments(
        *(marshal.tokens(x, heads) for x in (call.q, call.k, call.v, call.g, call.out)), described,
        marshal.pointer(bonus), marshal.pointer(slots), 0 if slots is None else slots.stride(0),
        slots is not None and slots.dtype == torch.int64, count, heads, key_dim, value_dim,
        call.g is not None and call.g.dim() == 4, call.scale, 0)
    tensors = [x for x in (call.q, call.k, call.v, call.g, call.out, state, bonus, slots) if x is not None]
    runner.launch(configurations.decode(key_dim), batch * heads * math.ceil(value_dim / 32), given, tensors)
    if state is not call.state:
        call.state.copy_(state)


class _Listed:
    """A runner that runs nothing."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.launches: list[tuple[Kernel, int]] = []

    def launch(self, kernel: Kernel, grid: int, arguments: ctypes.Structure, tensors: Sequence[Tensor]) -> None:
        """Note a launch."""
        self.launches.append((kernel, grid))


def planned(problem: Problem, segments: Segments) -> tuple[list[tuple[Kernel, int]], list[tuple[Kernel, int]]]:
    """Return the launches of a problem's forward pass and, in training, of its backward pass: no tensor is made."""
    p = problem

    def made(*shape: int, dtype: torch.dtype | None = p.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = (p.batch, p.tokens)
    q, k, v = made(*rows, p.q_heads, p.key_dim), made(*rows, p.k_heads, p.key_dim), made(*rows, p.v_heads, p.value_dim)
    gates = {"channel": (*rows, p.gate_heads, p.key_dim), "head": (*rows, p.gate_heads), "constant": (p.gate_heads,)}
    g = made(*gates[p.gate], dtype=p.gate_dtype) if p.gate in gates else None
    states = (p.sequences, p.heads, p.key_dim, p.value_dim)
    found = _Listed(problem.device.arch)
    if p.mode == "decode":
        decode(found, DecodeCall(q, k, v, g, made(*states, dtype=torch.float32), None,
                                 made(p.heads, p.key_dim) if p.bonus else None, 1.0,
                                 made(*rows, p.heads, p.value_dim)))
        return found.launches, []
    call = Call(q, k, v, g, made(*states, dtype=torch.float32) if p.initial_state else None,
                made(p.heads, p.key_dim) if p.bonus else None,
                made(p.sequences + 1, dtype=torch.int32) if p.packed else None, 1.0, p.reverse, p.final_state, {})
    links = made(boundaries(call, segments), *states[1:], dtype=torch.float32)
    Launcher(found, call, segments).forward(links)
    forward, found.launches = found.launches, []
    if p.training:
        Launcher(found, call, segments).backward(
            links, made(*rows, p.heads, p.value_dim), made(*states, dtype=torch.float32) if p.final_state else None)
    return forward, found.launches


def boundaries(call: Call, segments: Segments) -> int:
    """Count the states between segments."""
    tokens = call.q.shape[1]
    if call.cu_seqlens is not None:
        return int(tokens // segments.unit)
    return int(call.sequences * max(0, math.ceil(tokens / segments.unit) - 1))
