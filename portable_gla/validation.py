"""Every malformed call, with the message that a user needs: the argument, what was expected, what came.

Values on an accelerator are never read (that would synchronise); those on the CPU are.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("BTHD", "BHTD")


def _tensor(name: str, value: object, ranks: tuple[int, ...], shape: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(value).__name__}")
    if value.dim() not in ranks:
        raise ValueError(f"{name}: expected {shape}, got shape {list(value.shape)}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}")
    return value


def _floating(name: str, value: Tensor, allowed: Sequence[torch.dtype], note: str = "") -> None:
    if value.dtype not in allowed:
        names = ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in allowed))
        raise TypeError(f"{name}: expected dtype {names}{note}, got {str(value.dtype).removeprefix('torch.')}")


def _same_device(q: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None and value.device != q.device:
            raise ValueError(f"{name}: expected on q's device {q.device}, got {value.device}; nothing is moved for you")


def check_layout(layout: object) -> None:
    """Refuse a layout other than BTHD and BHTD."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {LAYOUTS}, got {layout!r}")


def check_backend_name(backend: object) -> None:
    """Refuse a backend that is not a string; whether it exists is for planning to say."""
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend: expected a backend's name or None, got {type(backend).__name__}")


def check_scale(scale: object) -> None:
    """Refuse a scale that is no number."""
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
        raise TypeError(f"scale: expected a number or None, got {type(scale).__name__}")


def check_qkvg(q: object, k: object, v: object, g: object, layout: str = "BTHD") -> int:
    """Check the four tensors that every call takes; return H, the largest head count."""
    order = "[B, T, H{}, {}]" if layout == "BTHD" else "[B, H{}, T, {}]"
    token, head = (1, 2) if layout == "BTHD" else (2, 1)
    q = _tensor("q", q, (4,), order.format("q", "K"))
    k = _tensor("k", k, (4,), order.format("k", "K"))
    v = _tensor("v", v, (4,), order.format("v", "V"))
    _floating("q", q, FLOATS)
    _floating("k", k, (q.dtype,), " (as q)")
    _floating("v", v, (q.dtype,), " (as q)")
    tensors = {"q": q, "k": k, "v": v}
    if g is not None:
        per_head = "[B, T, Hg]" if layout == "BTHD" else "[B, Hg, T]"
        g = _tensor("g", g, (4, 3, 1), f"{order.format('g', 'K')}, {per_head} or [Hg]")
        _floating("g", g, (q.dtype, torch.float32), " (as q, or float32)")
        tensors["g"] = g
    _same_device(q, k=k, v=v, g=g)
    heads = {}
    for name, x in tensors.items():
        if x.dim() == 1:
            heads[name] = x.shape[0]
            continue
        for what, axis in (("B", 0), ("T", token)):
            if x.shape[axis] != q.shape[axis]:
                raise ValueError(
                    f"{name}: expected {what} = {q.shape[axis]} as in q, got shape {list(x.shape)} in layout {layout}")
        heads[name] = x.shape[head]
        if name in ("k", "g") and x.dim() == 4 and x.shape[3] != q.shape[3]:
            raise ValueError(f"{name}: expected K = {q.shape[3]} as in q, got shape {list(x.shape)}")
    most = max(heads.values())
    for name, count in heads.items():
        if count == 0 or most % count:
            raise ValueError(f"{name}: expected a head count that divides H = {most}, the largest, got {count}")
    for name, x in (("q", q), ("v", v)):
        if x.shape[3] == 0:
            raise ValueError(f"{name}: expected {'K' if name == 'q' else 'V'} of 1 or more, got shape {list(x.shape)}")
    return most


def check_bonus(bonus: object, q: Tensor, heads: int) -> None:
    """Check ``bonus`` [H, K]."""
    if bonus is None:
        return
    bonus = _tensor("bonus", bonus, (2,), "[H, K]")
    _floating("bonus", bonus, (q.dtype, torch.float32), " (as q, or float32)")
    _same_device(q, bonus=bonus)
    if tuple(bonus.shape) != (heads, q.shape[3]):
        raise ValueError(f"bonus: expected shape {[heads, q.shape[3]]} ([H, K]), got {list(bonus.shape)}")


def check_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, initial_state: object, cu_seqlens: object,
                    bonus: object, layout: str) -> None:
    """Check all that can be checked of one :func:`portable_gla.attention` call without reading a value."""
    check_layout(layout)
    heads = check_qkvg(q, k, v, g, layout)
    check_bonus(bonus, q, heads)
    sequences = q.shape[0]
    if cu_seqlens is not None:
        cu_seqlens = _tensor("cu_seqlens", cu_seqlens, (1,), "[N + 1]")
        _floating("cu_seqlens", cu_seqlens, (torch.int32, torch.int64))
        _same_device(q, cu_seqlens=cu_seqlens)
        if q.shape[0] != 1:
            raise ValueError(f"cu_seqlens: expected B = 1 for packed sequences, got B = {q.shape[0]}")
        if cu_seqlens.shape[0] == 0:
            raise ValueError("cu_seqlens: expected N + 1 >= 1 entries, got none")
        sequences = cu_seqlens.shape[0] - 1
    if initial_state is not None:
        state = _tensor("initial_state", initial_state, (4,), "[N or 1, H, K, V]")
        _floating("initial_state", state, FLOATS)
        _same_device(q, initial_state=state)
        expected = [heads, q.shape[3], v.shape[3]]
        if list(state.shape[1:]) != expected or (state.shape[0] != sequences and state.shape[0] != 1):
            raise ValueError(
                f"initial_state: expected shape {[sequences, *expected]} or {[1, *expected]} ([N or 1, H, K, V]), "
                f"got {list(state.shape)}")


def check_cu_seqlens_values(cu_seqlens: Tensor, tokens: int) -> None:
    """Check the values of a ``cu_seqlens`` on the CPU: from 0, never falling, to T."""
    values = cu_seqlens.tolist()
    if values[0] != 0:
        raise ValueError(f"cu_seqlens: expected to start at 0, got {values[0]}")
    if values[-1] != tokens:
        raise ValueError(f"cu_seqlens: expected to end at T = {tokens}, got {values[-1]}")
    for index, (left, right) in enumerate(itertools.pairwise(values)):
        if right < left:
            raise ValueError(f"cu_seqlens: expected no falling entry, got {left} then {right} at index {index + 1}")


def check_decode(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: object, slots: object, bonus: object,
                 out: object) -> None:
    """Check all that can be checked of one :func:`portable_gla.decode_` call without reading a value."""
    heads = check_qkvg(q, k, v, g)
    check_bonus(bonus, q, heads)
    state = _tensor("state", state, (4,), "[P, H, K, V]")
    _floating("state", state, FLOATS)
    _same_device(q, state=state)
    expected = [heads, q.shape[3], v.shape[3]]
    if list(state.shape[1:]) != expected:
        raise ValueError(f"state: expected shape {['P', *expected]} ([P, H, K, V]), got {list(state.shape)}")
    if slots is None:
        if state.shape[0] != q.shape[0]:
            raise ValueError(f"state: expected P = B = {q.shape[0]} rows without slots, got {state.shape[0]}")
    else:
        slots = _tensor("slots", slots, (1,), "[B]")
        _floating("slots", slots, (torch.int32, torch.int64))
        _same_device(q, slots=slots)
        if slots.shape[0] != q.shape[0]:
            raise ValueError(f"slots: expected B = {q.shape[0]} entries, got {slots.shape[0]}")
    if out is not None:
        shape = [q.shape[0], q.shape[1], heads, v.shape[3]]
        out = _tensor("out", out, (4,), "[B, T, H, V]")
        _floating("out", out, (q.dtype,), " (as q)")
        _same_device(q, out=out)
        if list(out.shape) != shape:
            raise ValueError(f"out: expected shape {shape} ([B, T, H, V]), got {list(out.shape)}")


def check_slots_values(slots: Tensor, rows: int) -> None:
    """Check the values of ``slots`` on the CPU: −1 or a row of the pool, no row twice."""
    seen = set()
    for slot in slots.tolist():
        if not -1 <= slot < rows:
            raise ValueError(f"slots: expected −1 or a row of the state pool below P = {rows}, got {slot}")
        if slot >= 0 and slot in seen:
            raise ValueError(f"slots: expected every row at most once, got {slot} twice")
        seen.add(slot)
