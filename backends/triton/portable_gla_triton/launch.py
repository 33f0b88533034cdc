"""From a call's tensors to launches. The kernels are a parameter: compiled for the device, or emulated."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla.segments import Segments
from portable_gla_triton.folding import Folds
from portable_gla_triton.operands import EXACT
from portable_gla_triton.tiles import Tiles

_INT32 = 2**31
_DECODE_ELEMENTS = 4096  # of the state that a decoding program holds: 16 registers a thread of 8 warps


class Operands(SimpleNamespace):
    """What every kernel of a call takes: tuples (pointer, strides), head groups and compile-time constants."""

    heads: int
    sequences: int
    groups: dict[str, int]
    constants: dict[str, Any]


def _strided(x: Tensor) -> tuple[Any, ...]:
    return (x, *x.stride())


def _gate(call: Call | DecodeCall) -> tuple[str, tuple[Any, ...], int]:
    """Return the kind of gate, its tuple (pointer, strides of batch, token, head, channel) and its head count."""
    g = call.g
    if g is None:
        return "none", (call.q, 0, 0, 0, 0), 0
    if g.dim() == 4:
        return "channel", _strided(g), g.shape[2]
    if g.dim() == 3:
        return "head", (*_strided(g), 0), g.shape[2]
    return "constant", (g, 0, 0, g.stride(0), 0), g.shape[0]


def _groups(call: Call | DecodeCall, heads: int, gate_heads: int) -> dict[str, int]:
    """Return how many output heads share each head of q, k, v and g."""
    return {"q_group": heads // call.q.shape[2], "k_group": heads // call.k.shape[2],
            "v_group": heads // call.v.shape[2], "g_group": heads // gate_heads if gate_heads else 1}


def _state(x: Tensor) -> tuple[Any, ...]:
    """Return the tuple of a state [N or 1, H, K, V]: one row serves all sequences."""
    return (x, 0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:])


def _wide(tokens: int, *tensors: tuple[Any, ...]) -> bool:
    """Tell whether an offset within a tile of so many tokens and 1024 channels may pass 32 bits."""
    return any(tokens * abs(x[2]) + 1024 * abs(x[4]) >= _INT32 for x in tensors)


class Launcher:
    """One call on one set of kernels."""

    def __init__(self, kernels: Any, call: Call, tiles: Tiles, segments: Segments, kind: str) -> None:
        self.kernels, self.call, self.tiles, self.segments, self.kind = kernels, call, tiles, segments, kind
        self.gate, self.g, gate_heads = _gate(call)
        self.q, self.k, self.v = _strided(call.q), _strided(call.k), _strided(call.v)
        self.heads, self.sequences = call.heads, call.sequences
        self.batch, self.tokens, _, self.key_dim = call.q.shape
        self.value_dim = call.v.shape[3]
        self.groups = _groups(call, self.heads, gate_heads)
        self.packed = call.cu_seqlens is not None
        self.cu_seqlens = call.q if call.cu_seqlens is None else call.cu_seqlens.contiguous()
        self.bonus = call.q if call.bonus is None else call.bonus.contiguous()
        self.shape = {"tokens": self.tokens, "heads": self.heads}
        self.constants = {"K": self.key_dim, "V": self.value_dim, "GATE": self.gate, "PACKED": self.packed}
        self.ranged = call.q.dtype != torch.float32

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.call.q.new_empty(shape, dtype=dtype)

    def _walk(self, *tensors: tuple[Any, ...]) -> dict[str, Any]:
        """Return the constants of kernels that load tiles of tokens."""
        return {**self.constants, "BONUS": self.call.bonus is not None, "REVERSE": self.call.reverse,
                "WIDE": _wide(self.tiles.longest, self.q, self.k, self.v, self.g, *tensors), "KIND": self.kind}

    def _blocks(self, block_k: int, block_v: int) -> tuple[int, int]:
        return math.ceil(self.key_dim / block_k), math.ceil(self.value_dim / block_v)

    def _slots(self, unit: int) -> int:
        """Count the pieces of ``unit`` tokens that sequences may have; see ``kernels/common.py``."""
        if self.packed:
            return self.tokens // unit + self.sequences
        return self.batch * math.ceil(self.tokens / unit)

    def _pieces(self) -> dict[str, int]:
        return {**self.shape, "sequences": self.sequences, "unit": self.segments.unit}

    def _link(self, x: tuple[Any, ...], y: tuple[Any, ...], edge: Tensor | None, links: Tensor, forward: bool,
              groups: tuple[int, int]) -> None:
        """Fill the states between segments: a sweep over each segment, then a scan over their results."""
        tiles, call = self.tiles.states, self.call
        decays = self._empty(links.shape[0], self.heads, self.key_dim if self.gate == "channel" else 1)
        blocks_k, blocks_v = self._blocks(tiles.block_k, tiles.block_v)
        programs = self._slots(self.segments.unit) * self.heads * blocks_k * blocks_v
        walk = self._walk(x, y)
        self.kernels.summarize[(programs,)](
            x, y, self.g, self.cu_seqlens, _state(links), decays, 1.0 if forward else call.scale, **self._pieces(),
            x_group=groups[0], y_group=groups[1], g_group=self.groups["g_group"], **walk, FORWARD=forward,
            C=tiles.chunk, BK=tiles.block_k, BV=tiles.block_v, STAGES=tiles.stages, num_warps=tiles.warps,
            num_stages=tiles.stages)
        tiles = self.tiles.scan
        blocks_k, blocks_v = self._blocks(tiles.block_k, tiles.block_v)
        self.kernels.scan[(self.sequences * self.heads * blocks_k * blocks_v,)](
            _state(links), decays, _state(links if edge is None else edge), self.cu_seqlens, **self.shape,
            unit=self.segments.unit, **self.constants, EDGE=edge is not None, FORWARD=forward, BK=tiles.block_k,
            BV=tiles.block_v, num_warps=tiles.warps)

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
            self._link(self.k, self.v, call.initial_state, links, True,
                       (self.groups["k_group"], self.groups["v_group"]))
        tiles = self.tiles.forward
        crowded = self.kind == "tf32" and self.key_dim > 256  # one way to the scores, or registers do not suffice
        out = _strided(o)
        programs = self._slots(self.segments.unit) * self.heads * self._blocks(tiles.block_k, tiles.block_v)[1]
        self.kernels.forward[(programs,)](
            self.q, self.k, self.v, self.g, self.bonus,
            _state(links if call.initial_state is None else call.initial_state), self.cu_seqlens, out,
            _state(links if final is None else final), _state(links), call.scale,
            **self._pieces(), **self.groups, **self._walk(out), INITIAL=call.initial_state is not None,
            FINAL=final is not None, SEGMENTED=self.segments.several, RANGED=self.ranged and not crowded,
            SLICED=self.kind == EXACT and self.key_dim > tiles.block_k, C=tiles.chunk, BK=tiles.block_k,
            BV=tiles.block_v, STAGES=tiles.stages, num_warps=tiles.warps, num_stages=tiles.stages)
        return o, final

    def backward(self, links: Tensor, do: Tensor, dfinal: Tensor | None) -> Gradients:
        """Return the gradients."""
        call = self.call
        if not self._slots(self.segments.unit):
            return self._untouched(dfinal)
        grad = _strided(do)
        back_links = links
        if self.segments.several:
            back_links = torch.empty_like(links)
            self._link(self.q, grad, dfinal, back_links, False, (self.groups["q_group"], 1))
        tiles = self.tiles.states
        blocks_k, blocks_v = self._blocks(tiles.block_k, tiles.block_v)
        slots = self._slots(tiles.chunk)
        kept, scaled = call.q.dtype, call.q.dtype == torch.float16
        chunks = [self._empty(slots, self.heads, self.key_dim, self.value_dim, dtype=kept) for _ in range(2)]
        scales = [self._empty(slots, self.heads, self.key_dim, blocks_v) if scaled else chunks[0] for _ in range(2)]
        dinitial = None if call.initial_state is None else self._empty(*call.state_shape)
        walk = self._walk(grad)
        kept_states = (chunks[0], scales[0], chunks[1], scales[1])
        self.kernels.chunk_states[(self._slots(self.segments.unit) * self.heads * blocks_k * blocks_v * 2,)](
            self.q, self.k, self.v, grad, self.g, _state(links if call.initial_state is None else call.initial_state),
            _state(links if dfinal is None else dfinal), _state(links if dinitial is None else dinitial), _state(links),
            _state(back_links), self.cu_seqlens, *kept_states, call.scale, **self._pieces(), **self.groups, **walk,
            INITIAL=call.initial_state is not None, FINAL=dfinal is not None, SEGMENTED=self.segments.several,
            SCALED=scaled, C=tiles.chunk, BK=tiles.block_k, BV=tiles.block_v, STAGES=tiles.stages,
            num_warps=tiles.warps, num_stages=tiles.stages)
        tiles = self.tiles.gradients
        blocks_k, _ = self._blocks(tiles.block_k, tiles.block_v)
        dq, dk = (self._gradient(x, self.key_dim, self.groups[name])
                  for x, name in ((call.q, "q_group"), (call.k, "k_group")))
        dv = self._gradient(call.v, self.value_dim, self.groups["v_group"])
        dg, gate_strides = self._gate_gradient(blocks_k, slots)
        dbonus = None if call.bonus is None else self._empty(2 * slots, self.heads, self.key_dim)
        self.kernels.gradients[(slots * self.heads * 2 * (blocks_k + blocks_v),)](
            self.q, self.k, self.v, grad, self.g, self.bonus, _strided(dq), _strided(dk), _strided(dv), gate_strides,
            self.bonus if dbonus is None else dbonus, self.cu_seqlens, *kept_states, call.scale, **self.shape,
            sequences=self.sequences, **self.groups, **walk, RANGED=self.ranged, SCALED=scaled, C=tiles.chunk,
            NEAR=tiles.near, BK=tiles.block_k, BV=tiles.block_v, num_warps=tiles.warps, num_stages=tiles.stages)
        folds = Folds()
        found = Gradients(
            _folded(folds, dq, call.q), _folded(folds, dk, call.k), _folded(folds, dv, call.v),
            self._folded_gate(folds, dg), self._folded_initial(folds, dinitial),
            None if dbonus is None or call.bonus is None else folds.add(
                dbonus, call.bonus.dtype, tuple(call.bonus.shape), (0,)))
        folds.launch(self.kernels)
        return found

    def _gradient(self, like: Tensor, size: int, group: int) -> Tensor:
        """Allocate a gradient: in float32 for each output head where heads are shared, to be summed."""
        dtype = like.dtype if group == 1 else torch.float32
        return self._empty(self.batch, self.tokens, self.heads, size, dtype=dtype)

    def _gate_gradient(self, parts: int, slots: int) -> tuple[Tensor | None, tuple[Any, ...]]:
        """Allocate dg; per head a part for each tile of K, constant gates a sum for each chunk besides."""
        g = self.call.g
        if g is None:
            return None, (self.call.q, 0, 0, 0, 0, 0)
        if self.gate == "channel":
            found = self._gradient(g, self.key_dim, self.groups["g_group"])
            return found, (*_strided(found), 0)
        if self.gate == "constant":
            found = self._empty(parts, 2 * slots, self.heads)
            return found, (found, 0, 0, 0, 0, found.stride(0))
        found = self._empty(parts, self.batch, self.tokens, self.heads)
        return found, (found, *found.stride()[1:], 0, found.stride(0))

    def _folded_gate(self, folds: Folds, found: Tensor | None) -> Tensor | None:
        g = self.call.g
        if found is None or g is None:
            return None
        if self.gate == "channel":
            return _folded(folds, found, g)
        if self.gate == "constant":
            parts, chunks, _ = found.shape
            return folds.add(found.view(parts * chunks, g.shape[0], -1), g.dtype, tuple(g.shape), (0, 2))
        return folds.add(found.view(found.shape[0], -1, self.groups["g_group"]), g.dtype, tuple(g.shape), (0, 2))

    def _folded_initial(self, folds: Folds, found: Tensor | None) -> Tensor | None:
        initial = self.call.initial_state
        if found is None or initial is None:
            return None
        if initial.shape[0] == 1:
            return folds.add(found, initial.dtype, tuple(initial.shape), (0,))
        return found.to(initial.dtype)

    def _untouched(self, dfinal: Tensor | None) -> Gradients:
        """Return the gradients of a call without a token: the final state is the initial one."""
        call = self.call
        zeros = [None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format)
                 for x in (call.q, call.k, call.v, call.g, call.bonus)]
        dinitial = None
        if call.initial_state is not None:
            dinitial = call.q.new_zeros(call.state_shape, dtype=torch.float32) if dfinal is None else dfinal.float()
        dq, dk, dv, dg, dbonus = zeros
        assert dq is not None and dk is not None and dv is not None
        folds = Folds()
        found = Gradients(dq, dk, dv, dg, self._folded_initial(folds, dinitial), dbonus)
        folds.launch(self.kernels)
        return found


def _folded(folds: Folds, found: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient [B, T, H, D] over the output heads that share a head."""
    if found.shape == like.shape:
        return found
    shared = found.view(*found.shape[:2], like.shape[2], found.shape[2] // like.shape[2], like.shape[3])
    return folds.add(shared, like.dtype, tuple(like.shape), (3,))


def decode(kernels: Any, call: DecodeCall) -> None:
    """Run one decoding step."""
    gate, g, gate_heads = _gate(call)
    batch, tokens, _, key_dim = call.q.shape
    value_dim, heads = call.v.shape[3], call.state.shape[1]
    if not batch or not tokens:
        return
    rows = max(16, 1 << (key_dim - 1).bit_length())
    block_v = max(16, min(64, _DECODE_ELEMENTS // rows, 1 << (value_dim - 1).bit_length()))
    kernels.decode[(batch * heads * math.ceil(value_dim / block_v),)](
        _strided(call.q), _strided(call.k), _strided(call.v), g,
        call.q if call.bonus is None else call.bonus.contiguous(), _strided(call.state),
        call.q if call.slots is None else call.slots, _strided(call.out), call.scale, tokens=tokens, heads=heads,
        slot_stride=0 if call.slots is None else call.slots.stride(0), **_groups(call, heads, gate_heads), K=key_dim,
        V=value_dim, GATE=gate, BONUS=call.bonus is not None, SLOTS=call.slots is not None, ROWS=rows, BV=block_v,
        num_warps=8)
