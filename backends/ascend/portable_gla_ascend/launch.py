"""From a call's tensors to launches. The kernels are a parameter: compiled for the device, emulated, or recorded."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla_ascend.places import packed_places
from portable_gla_ascend.socs import Soc
from portable_gla_ascend.tiles import Pass, chip, choose

KINDS = {torch.bfloat16: "bf16", torch.float16: "split", torch.float32: "f32"}
_NEAR = 50.0  # nats within which e^p and e^-p are taken apart: both stay far inside float32
_LEAST_SWEPT = 32  # channels of V


@functools.lru_cache(maxsize=64)
def near_table(device: torch.device, size: int) -> Tensor:
    """Return the one mask that all others are cut from: [size, size], see ``kernels/gates.py``."""
    row, column = torch.arange(size)[:, None], torch.arange(size)[None, :]
    bits = (row ^ column).double().clamp(min=0.5).log2().floor().exp2().floor()
    return (bits * (row - column).sign()).to(torch.float32).to(device)


def forward(kernels: Any, call: Call, soc: Soc) -> tuple[Tensor, Tensor | None]:
    """Return o and the final state."""
    return _Launcher(kernels, call, soc).forward()


def backward(kernels: Any, call: Call, do: Tensor, dfinal: Tensor | None, soc: Soc) -> Gradients:
    """Return the gradients."""
    return _Launcher(kernels, call, soc).backward(_even(do), dfinal)


def _even(x: Tensor) -> Tensor:
    """Return x with its channels side by side, which is what the device loads in bursts."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Return the strides of the batch, the token and the head."""
    return x.stride(0), x.stride(1), x.stride(2)


def _edge(state: Tensor | None) -> Tensor | None:
    """Return a state at a sequence's end as kernels read it."""
    return None if state is None else state.to(torch.float32).contiguous()


def _edge_stride(state: Tensor | None) -> int:
    """Return the stride of the sequences, which may share one state."""
    return 0 if state is None or state.shape[0] == 1 else state.stride(0)


def _depth(tiles: Pass) -> int:
    """Return how many levels cover all pairs of a chunk."""
    return tiles.chunk.bit_length() - 1


def swept(soc: Soc, tiles: Pass, heads: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> int:
    """Return the tile of V of a pass's sweeps over so many sequences' heads: smaller while cores would idle.

    In float16 never: a kept state's scales are each of a row of a tile, and bits would hang on what else is in a batch.
    """
    if dtype == torch.float16:
        return tiles.sweep_v
    programs = heads * math.ceil(key_dim / tiles.block_k)
    block = tiles.sweep_v
    while block > _LEAST_SWEPT and programs * math.ceil(value_dim / block) < soc.cube_cores:
        block //= 2
    return block


class _Gate:
    """g as kernels read it: a scalar per head with tokens side by side, since strided scalars are slow."""

    def __init__(self, g: Tensor | None, like: Tensor) -> None:
        self.heads, self.strides = 1, (0, 0, 0)
        if g is None:
            self.kind, self.tensor = "none", like
        elif g.dim() == 4:
            self.kind, self.tensor, self.heads = "channel", _even(g), g.shape[2]
            self.strides = _strides(self.tensor)
        elif g.dim() == 3:
            self.kind, self.tensor, self.heads = "head", g.float().transpose(1, 2).contiguous(), g.shape[2]
            self.strides = (self.tensor.stride(0), 1, self.tensor.stride(1))
        else:
            self.kind, self.tensor, self.heads = "constant", g.float().contiguous(), g.shape[0]
            self.strides = (0, 0, 1)


class _Launcher:
    """One call on one set of kernels."""

    def __init__(self, kernels: Any, call: Call, soc: Soc) -> None:
        self.kernels, self.call, self.soc = kernels, call, soc
        self.q, self.k, self.v = _even(call.q), _even(call.k), _even(call.v)
        self.gate = _Gate(call.g, call.q)
        self.heads, self.sequences = call.heads, call.sequences
        self.batch, self.tokens, _, self.key_dim = call.q.shape
        self.value_dim = call.v.shape[3]
        self.packed = call.cu_seqlens is not None
        self.cu_seqlens = call.q if call.cu_seqlens is None else call.cu_seqlens.contiguous()
        self.bonus = call.q if call.bonus is None else call.bonus.contiguous()
        self.kind = KINDS[call.q.dtype]
        self.tiles = choose(soc, self.kind, self.gate.kind, self.key_dim, self.value_dim)
        self.scaled = call.q.dtype == torch.float16
        self.usual = {"K": self.key_dim, "V": self.value_dim, "GATE": self.gate.kind, "PACKED": self.packed,
                      "REVERSE": call.reverse, "BONUS": call.bonus is not None, "SCALED": self.scaled,
                      "KIND": self.kind}

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.call.q.new_empty(shape, dtype=dtype)

    def _group(self, heads: int) -> int:
        return self.heads // heads

    def _slots(self, unit: int) -> int:
        """Count the pieces of ``unit`` tokens that sequences may have; one at token s has those from s // unit."""
        if self.packed:
            return self.tokens // unit + self.sequences
        return self.batch * math.ceil(self.tokens / unit)

    def _places(self, chunk: int) -> Tensor:
        if self.call.cu_seqlens is None:
            return self.call.q
        return packed_places(self.call.cu_seqlens, chunk, self._slots(chunk))

    def _grid(self, items: int) -> tuple[int]:
        return (max(1, min(items, self.soc.cube_cores)),)

    def _near(self, tiles: Pass) -> Tensor:
        return near_table(self.call.q.device, tiles.chunk)

    def _depths(self, tiles: Pass) -> Tensor:
        shape = self._slots(tiles.chunk), self.heads, math.ceil(self.key_dim / tiles.block_k)
        # A packed slot without a chunk is walked too, and reads what no sweep wrote.
        empty = self.call.q.new_zeros if self.packed else self.call.q.new_empty
        return empty(shape, dtype=torch.int32)

    def _swept(self, tiles: Pass) -> int:
        return swept(self.soc, tiles, self.sequences * self.heads, self.key_dim, self.value_dim,
                     self.call.q.dtype)

    def _kept(self, unit: int, block_v: int) -> tuple[Tensor, Tensor]:
        """Allocate states that are kept for each ``unit`` tokens and, of float16, their rows' scales."""
        slots = self._slots(unit)
        kept = self._empty(slots, self.heads, self.key_dim, self.value_dim, dtype=self.call.q.dtype)
        if not self.scaled:
            return kept, kept
        return kept, self._empty(slots, self.heads, math.ceil(self.value_dim / block_v), self.key_dim)

    def _sweep(self, tiles: Pass, final: Tensor | None, depths: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the states between chunks; return them and, of float16, their rows' scales."""
        call, block_v = self.call, self._swept(tiles)
        kept, scales = self._kept(tiles.chunk * tiles.span, block_v)
        initial = _edge(call.initial_state)
        items = self.sequences * self.heads * self._tiles(tiles, block_v)
        _, k_group, v_group, g_group = self._groups()
        self.kernels.sweep[self._grid(items)](
            self.k, self.v, self.gate.tensor, self._near(tiles), kept if initial is None else initial, kept, scales,
            kept if final is None else final, depths, self.cu_seqlens, call.scale, items, self.tokens, self.heads,
            *_strides(self.k), *_strides(self.v), *self.gate.strides, _edge_stride(initial), _edge_stride(final),
            k_group, v_group, g_group, **self.usual, **self._swept_as(tiles, block_v), INITIAL=initial is not None,
            FINAL=final is not None)
        return kept, scales

    def _sweep_both(self, tiles: Pass, do: Tensor, dfinal: Tensor | None, dinitial: Tensor | None,
                    depths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keep the states and the adjoint ones; return both, each with its rows' scales."""
        call, block_v = self.call, self._swept(tiles)
        states, state_scales = self._kept(tiles.chunk * tiles.span, block_v)
        adjoints, adjoint_scales = self._kept(tiles.chunk, block_v)
        initial, final = _edge(call.initial_state), _edge(dfinal)
        items = self.sequences * self.heads * self._tiles(tiles, block_v) * 2
        self.kernels.sweep_both[self._grid(items)](
            self.q, self.k, self.v, do, self.gate.tensor, self._near(tiles), states if initial is None else initial,
            states, state_scales, states if final is None else final, adjoints, adjoint_scales,
            states if dinitial is None else dinitial, depths, self.cu_seqlens, call.scale, items, self.tokens,
            self.heads, *_strides(self.q), *_strides(self.k), *_strides(self.v), *_strides(do), *self.gate.strides,
            _edge_stride(initial), _edge_stride(final), _edge_stride(dinitial), *self._groups(), **self.usual,
            **self._swept_as(tiles, block_v), INITIAL=initial is not None, DFINAL=final is not None)
        return states, state_scales, adjoints, adjoint_scales

    def _tiles(self, tiles: Pass, block_v: int) -> int:
        """Count a sweep's tiles of K and V."""
        return math.ceil(self.key_dim / tiles.block_k) * math.ceil(self.value_dim / block_v)

    def _swept_as(self, tiles: Pass, block_v: int) -> dict[str, Any]:
        """Return what the sweeps are compiled with, besides what all kernels are."""
        return {"RANGE": 0.0 if self.kind == "f32" else _NEAR, "C": tiles.chunk, "SPAN": tiles.span,
                "BK": tiles.block_k, "BV": block_v, "DEPTH": _depth(tiles)}

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """Return o and the final state."""
        call, tiles = self.call, self.tiles.forward
        o = self._empty(self.batch, self.tokens, self.heads, self.value_dim, dtype=call.q.dtype)
        final = self._empty(*call.state_shape) if call.output_final_state else None
        if not self.batch or not self.tokens:
            if final is not None:
                final.copy_(call.initial_state) if call.initial_state is not None else final.zero_()
            return o, final
        depths = self._depths(tiles)
        kept, scales = self._sweep(tiles, final, depths)
        kept_v = self._swept(tiles)
        block_v = min(tiles.block_v, kept_v) if self.scaled else tiles.block_v
        items = self._slots(tiles.chunk) * self.heads * math.ceil(self.value_dim / block_v)
        full = self.kind == "split" and self.gate.kind == "channel" and chip(self.soc) == "910"
        options = {"multibuffer": False} if full else {}  # else it is compiled three times, and ends so
        self.kernels.outputs[self._grid(items)](
            self.q, self.k, self.v, self.gate.tensor, self.bonus, o, self._near(tiles), kept, scales, depths,
            self._places(tiles.chunk), self.cu_seqlens, call.scale, items, self.tokens, self.heads, *_strides(self.q),
            *_strides(self.k), *_strides(self.v), *self.gate.strides, *self._groups(), **self.usual,
            C=tiles.chunk, SPAN=tiles.span, BK=tiles.block_k, BV=block_v, KEPT_V=kept_v, **options)
        return o, final

    def _groups(self) -> tuple[int, int, int, int]:
        """Return how many output heads share each head of q, k, v and g."""
        return (self._group(self.q.shape[2]), self._group(self.k.shape[2]), self._group(self.v.shape[2]),
                self._group(self.gate.heads) if self.call.g is not None else 1)

    def backward(self, do: Tensor, dfinal: Tensor | None) -> Gradients:
        """Return the gradients."""
        call, tiles = self.call, self.tiles.backward
        if not self.batch or not self.tokens:
            return self._untouched(dfinal)
        dinitial = None if call.initial_state is None else self._empty(*call.state_shape)
        dq, dk = (self._gradient(x, self.key_dim) for x in (call.q, call.k))
        dv = self._gradient(call.v, self.value_dim)
        dg = self._gate_gradient()
        dbonus = None if call.bonus is None else self._empty(self._slots(tiles.chunk), self.heads, self.key_dim)
        depths = self._depths(tiles)
        states, state_scales, adjoints, adjoint_scales = self._sweep_both(tiles, do, dfinal, dinitial, depths)
        options = {"multibuffer": False} if self.gate.kind == "channel" else {}  # else it is compiled three times
        kept_v, items = self._swept(tiles), self._slots(tiles.chunk) * self.heads
        block_v, loop_v = (min(block, kept_v) if self.scaled else block for block in (tiles.block_v, tiles.loop_v))
        near, places = self._near(tiles), self._places(tiles.chunk)
        for keys, values in ((True, True),) if tiles.whole else ((True, False), (False, True)):
            self.kernels.gradients[self._grid(items)](
                self.q, self.k, self.v, do, self.gate.tensor, self.bonus, dq, dk, dv, dq if dg is None else dg,
                dq if dbonus is None else dbonus, near, states, state_scales, adjoints, adjoint_scales, depths, places,
                self.cu_seqlens, call.scale, items, self.tokens, self.heads, *_strides(self.q), *_strides(self.k),
                *_strides(self.v), *_strides(do), *self.gate.strides, *self._groups(), **self.usual, C=tiles.chunk,
                SPAN=tiles.span, BK=tiles.block_k, BV=block_v, LOOP_K=tiles.loop_k, LOOP_V=loop_v, KEPT_V=kept_v,
                DEPTH=_depth(tiles), KEYS=keys, VALUES=values, OWN_MASKS=tiles.own_masks, **options)
        return Gradients(
            _folded(dq, call.q), _folded(dk, call.k), _folded(dv, call.v), self._folded_gate(dg),
            self._folded_initial(dinitial),
            None if dbonus is None or call.bonus is None else dbonus.sum(0).to(call.bonus.dtype))

    def _gradient(self, like: Tensor, size: int) -> Tensor:
        """Allocate a gradient: in float32 for each output head where heads are shared, to be summed."""
        dtype = like.dtype if like.shape[2] == self.heads else torch.float32
        return self._empty(self.batch, self.tokens, self.heads, size, dtype=dtype)

    def _gate_gradient(self) -> Tensor | None:
        """Allocate dg: per channel as the others, else [B, H, T]."""
        g = self.call.g
        if g is None:
            return None
        if self.gate.kind == "channel":
            return self._gradient(g, self.key_dim)
        return self._empty(self.batch, self.heads, self.tokens)

    def _folded_gate(self, found: Tensor | None) -> Tensor | None:
        g = self.call.g
        if found is None or g is None:
            return None
        if g.dim() == 4:
            return _folded(found, g)
        shared = found.view(self.batch, self.gate.heads, -1, self.tokens)
        if g.dim() == 3:
            return _in_order(shared, 2).transpose(1, 2).to(g.dtype).contiguous()
        return shared.sum((0, 2, 3)).to(g.dtype)

    def _folded_initial(self, found: Tensor | None) -> Tensor | None:
        initial = self.call.initial_state
        if found is None or initial is None:
            return None
        return (found.sum(0, keepdim=True) if initial.shape[0] == 1 else found).to(initial.dtype)

    def _untouched(self, dfinal: Tensor | None) -> Gradients:
        """Return the gradients of a call without a token: the final state is the initial one."""
        call = self.call
        dinitial = None
        if call.initial_state is not None:
            dinitial = call.q.new_zeros(call.state_shape, dtype=torch.float32)
            if dfinal is not None:
                dinitial.copy_(dfinal)
        zeros = [None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format)
                 for x in (call.q, call.k, call.v, call.g, call.bonus)]
        dq, dk, dv, dg, dbonus = zeros
        assert dq is not None and dk is not None and dv is not None
        return Gradients(dq, dk, dv, dg, self._folded_initial(dinitial), dbonus)


def _in_order(x: Tensor, dim: int) -> Tensor:
    """Sum a few parts one after another: the order of PyTorch's sum depends on the other sizes, the batch's too."""
    return functools.reduce(torch.add, x.unbind(dim))


def _folded(found: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient [B, T, H, D] over the output heads that share a head."""
    if found.shape == like.shape:
        return found
    return found.view(*found.shape[:2], like.shape[2], -1, like.shape[3]).sum(3).to(like.dtype)


def decode(kernels: Any, call: DecodeCall, soc: Soc) -> None:
    """Run one decoding step: one launch, no synchronisation."""
    batch, tokens, _, key_dim = call.q.shape
    value_dim, heads = call.v.shape[3], call.state.shape[1]
    if not batch or not tokens:
        return
    q, k, v = _even(call.q), _even(call.k), _even(call.v)
    gate = _Gate(call.g, call.q)
    bonus = call.q if call.bonus is None else call.bonus.contiguous()
    block_k = max(16, 1 << (key_dim - 1).bit_length())
    block_v = max(16, min(64, 8192 // block_k, 1 << (value_dim - 1).bit_length()))
    items = batch * heads * math.ceil(value_dim / block_v)
    kernels.decode[(max(1, min(items, soc.vector_cores)),)](
        q, k, v, gate.tensor, bonus, call.state, call.q if call.slots is None else call.slots, call.out, call.scale,
        items, tokens, heads, *_strides(q), *_strides(k), *_strides(v), *gate.strides, call.state.stride(0),
        call.state.stride(1), call.state.stride(2), call.state.stride(3), *_strides(call.out), call.out.stride(3),
        0 if call.slots is None else call.slots.stride(0), heads // q.shape[2], heads // k.shape[2],
        heads // v.shape[2], heads // gate.heads if call.g is not None else 1, K=key_dim, V=value_dim, GATE=gate.kind,
        BONUS=call.bonus is not None, SLOTS=call.slots is not None, BK=block_k, BV=block_v)
