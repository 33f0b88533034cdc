"""The kernels' parameters, as ``csrc/arguments.cuh`` declares them."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_longlong, c_void_p

import torch
from torch import Tensor

KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Tokens(ctypes.Structure):
    """A tensor [B, T, heads, D] by its strides."""

    _fields_ = (("data", c_void_p), ("batch", c_longlong), ("token", c_longlong), ("head", c_longlong),
                ("channel", c_longlong), ("group", c_int), ("kind", c_int))


class State(ctypes.Structure):
    """States [rows, H, K, V] by their strides."""

    _fields_ = (("data", c_void_p), ("row", c_longlong), ("head", c_longlong), ("key", c_longlong),
                ("value", c_longlong), ("kind", c_int), ("unused", c_int))


class Sequences(ctypes.Structure):
    """The sequences of a call, and how they are cut."""

    _fields_ = (("cu_seqlens", c_void_p), ("tokens", c_int), ("sequences", c_int), ("heads", c_int), ("unit", c_int),
                ("reverse", c_int), ("unused", c_int))


class SweepArguments(ctypes.Structure):
    """Of the forward pass, and of everything else that carries a state along the tokens."""

    _fields_ = (("sequences", Sequences), ("q", Tokens), ("x", Tokens), ("y", Tokens), ("g", Tokens), ("o", Tokens),
                ("bonus", c_void_p), ("first", State), ("last", State), ("links", State), ("decays", c_void_p),
                ("kept", c_void_p), ("kept_units", c_void_p), ("scale", c_float), ("key_dim", c_int),
                ("value_dim", c_int), ("forward", c_int), ("exclusive", c_int), ("summary", c_int))


class ScanArguments(ctypes.Structure):
    """Of the scan over segments."""

    _fields_ = (("sequences", Sequences), ("links", State), ("edge", State), ("decays", c_void_p), ("key_dim", c_int),
                ("value_dim", c_int), ("forward", c_int), ("per_channel", c_int))


class GradientsArguments(ctypes.Structure):
    """Of a chunk's gradients."""

    _fields_ = (("sequences", Sequences), ("q", Tokens), ("k", Tokens), ("v", Tokens), ("d", Tokens), ("g", Tokens),
                ("dq", Tokens), ("dk", Tokens), ("dv", Tokens), ("dg", Tokens), ("dg_part", c_longlong),
                ("bonus", c_void_p), ("dbonus", c_void_p), ("kept_s", c_void_p), ("kept_r", c_void_p),
                ("units_s", c_void_p), ("units_r", c_void_p), ("scale", c_float), ("key_dim", c_int),
                ("value_dim", c_int), ("constant", c_int), ("groups", c_int), ("parts", c_int))


class FoldJob(ctypes.Structure):
    """One tensor's sums."""

    _fields_ = (("source", c_void_p), ("target", c_void_p), ("outputs", c_longlong), ("inner", c_longlong),
                ("outer_stride", c_longlong), ("inner_stride", c_longlong), ("terms", c_longlong),
                ("count", c_longlong), ("outer_step", c_longlong), ("inner_step", c_longlong), ("first", c_int),
                ("programs", c_int), ("kind", c_int), ("unused", c_int))


class FoldArguments(ctypes.Structure):
    """Every sum of a backward pass."""

    _fields_ = (("jobs", FoldJob * 8),)


class DecodeArguments(ctypes.Structure):
    """Of one decoding step."""

    _fields_ = (("q", Tokens), ("k", Tokens), ("v", Tokens), ("g", Tokens), ("o", Tokens), ("state", State),
                ("bonus", c_void_p), ("slots", c_void_p), ("slot_stride", c_longlong), ("slots_wide", c_int),
                ("tokens", c_int), ("heads", c_int), ("key_dim", c_int), ("value_dim", c_int), ("per_channel", c_int),
                ("scale", c_float), ("unused", c_int))


def tokens(x: Tensor | None, heads: int) -> Tokens:
    """Describe a tensor [B, T, Hx, D], or without D; of [Hx] each head's number serves all tokens."""
    if x is None:
        return Tokens()
    kind, data = KINDS[x.dtype], x.data_ptr()
    if x.dim() == 1:
        return Tokens(data, 0, 0, x.stride(0), 0, heads // x.shape[0], kind)
    channel = x.stride(3) if x.dim() == 4 else 0
    return Tokens(data, x.stride(0), x.stride(1), x.stride(2), channel, heads // x.shape[2], kind)


def state(x: Tensor | None) -> State:
    """Describe states [N or 1, H, K, V]: one row serves all sequences."""
    if x is None:
        return State()
    return State(x.data_ptr(), 0 if x.shape[0] == 1 else x.stride(0), *x.stride()[1:], KINDS[x.dtype], 0)


def pointer(x: Tensor | None) -> int | None:
    """Return a tensor's address, or none."""
    return None if x is None else x.data_ptr()
