"""The PyTorch operators, written once for every backend: schemas, fakes, autograd.

``fwd`` and ``bwd`` take the backend's handle and the pins as strings, so that both passes of one call run on the same
backend with the same plan, in eager mode and in a compiled graph, wherever the backward pass runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from portable_gla import registry, validation
from portable_gla.backend import Call, DecodeCall

_CALL = ("Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? initial_state, Tensor? bonus, Tensor? cu_seqlens, "
         "float scale, bool reverse, bool output_final_state, str handle, str pins")
_library: Any = torch.library.Library("portable_gla", "DEF")  # type: ignore[no-untyped-call]
_library.define(f"fwd({_CALL}, bool save) -> (Tensor o, Tensor final_state, Tensor residual)")
_library.define(f"bwd({_CALL}, Tensor residual, Tensor do, Tensor? dfinal_state) -> "
                "(Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dinitial_state, Tensor dbonus)")
_library.define("decode(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor(a!) state, Tensor? slots, Tensor? bonus, "
                "float scale, str handle, Tensor(b!) out) -> ()")


class Saving(Protocol):
    """Whoever wants to know what calls save for their backward passes: see :mod:`portable_gla.offload`."""

    def expect(self, call: Call, count: int) -> None:
        """Hear that a call is about to save a residual of ``count`` bytes; may raise."""
        ...

    def note(self, call: Call, residual: Tensor) -> None:
        """Hear which residual a call has made."""
        ...

    def relax(self, residual: Tensor) -> None:
        """Hear that the call of this residual does not depend on strides: no compiled graph looks at what it saves."""
        ...


saving: ContextVar[Saving | None] = ContextVar("portable_gla_saving", default=None)


@functools.lru_cache(maxsize=256)
def _parse(pins: str) -> dict[str, int]:
    return {name: int(value) for name, value in (pin.split("=") for pin in pins.split(",") if pin)}


@functools.lru_cache(maxsize=256)
def format_pins(pins: tuple[tuple[str, int], ...]) -> str:
    """Write pins as the operators take them: ``"chunk=32,segments=2"``."""
    return ",".join(f"{name}={value}" for name, value in pins)


def _call(inputs: Sequence[Any], pins: str) -> Call:
    """Build a Call from the operators' first ten arguments and the pins."""
    return Call(*inputs, pins=_parse(pins))  # type: ignore[misc]


def _absent(q: Tensor) -> Tensor:
    """Stand in for an output that was not asked for: operators cannot return None."""
    return q.new_empty(0)


def _fwd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, handle, pins, save = args
    call = _call(inputs, pins)
    if call.cu_seqlens is not None and call.cu_seqlens.device.type == "cpu":
        validation.check_cu_seqlens_values(call.cu_seqlens, call.q.shape[1])
    backend, listener = registry.get(handle), saving.get() if save else None
    if listener is not None:
        shape, dtype = backend.residual_spec(call)
        listener.expect(call, math.prod(shape) * dtype.itemsize)
    with _no_autocast(call.q):
        o, final_state, residual = backend.forward(call, save=save)
    if listener is not None and residual is not None:
        listener.note(call, residual)
    return (o, _absent(o) if final_state is None else final_state, _absent(o) if residual is None else residual)


def _bwd(*args: Any) -> tuple[Tensor, ...]:
    *inputs, handle, pins, residual, do, dfinal_state = args
    call = _call(inputs, pins)
    with _no_autocast(call.q):
        gradients = registry.get(handle).backward(call, residual, do, dfinal_state)
    return tuple(_absent(call.q) if gradient is None else gradient for gradient in gradients)


def _decode(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, slots: Tensor | None,
            bonus: Tensor | None, scale: float, handle: str, out: Tensor) -> None:
    if slots is not None and slots.device.type == "cpu":
        validation.check_slots_values(slots, state.shape[0])
    with _no_autocast(q):
        registry.get(handle).decode(DecodeCall(q, k, v, g, state, slots, bonus, scale, out))


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


_nothing = _Nothing()


_knows_autocast = functools.cache(torch.amp.is_autocast_available)  # asking again for another type ("meta") raises


def autocasting(device_type: str) -> bool:
    """Tell whether autocast is on for a type of device, which autocast need not know."""
    return _knows_autocast(device_type) and torch.is_autocast_enabled(device_type)


def _no_autocast(q: Tensor) -> torch.autocast | _Nothing:
    """Keep autocast out of a backend's own operations: ``attention`` has cast the inputs already."""
    device_type = q.device.type
    return torch.autocast(device_type, enabled=False) if autocasting(device_type) else _nothing


_library.impl("fwd", _fwd, "CompositeExplicitAutograd")
_library.impl("bwd", _bwd, "CompositeExplicitAutograd")
_library.impl("decode", _decode, "CompositeExplicitAutograd")


def _fake_fwd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, handle, pins, save = args
    call = _call(inputs, pins)
    q, v = call.q, call.v
    o = v.new_empty(q.shape[0], q.shape[1], call.heads, v.shape[3])
    final_state = q.new_empty(call.state_shape, dtype=call.state_dtype) if call.output_final_state else _absent(q)
    residual = _absent(q)
    if save:
        shape, dtype = registry.get(handle).residual_spec(call)
        residual = q.new_empty(shape, dtype=dtype)
    return o, final_state, residual


def _fake_bwd(*args: Any) -> tuple[Tensor, ...]:
    q, k, v, g, initial_state, bonus = args[:6]
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape)
                 for x in (q, k, v, g, initial_state, bonus))


def _fake_decode(*args: Any) -> None:
    return None


torch.library.register_fake("portable_gla::fwd", _fake_fwd, lib=_library)
torch.library.register_fake("portable_gla::bwd", _fake_bwd, lib=_library)
torch.library.register_fake("portable_gla::decode", _fake_decode, lib=_library)


# Autograd is a kernel of the Autograd key around autograd.Function: a third of the overhead of register_autograd.


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            o, final_state, residual = _fwd_op(*args)
        ctx.set_materialize_grads(False)
        output_final_state = args[9]  # else final_state is empty, and no gradient may come back to it
        ctx.mark_non_differentiable(*([residual] if output_final_state else [final_state, residual]))
        ctx.save_for_backward(*args[:7], residual)
        ctx.rest = args[7:]
        listener = saving.get() if args[-1] else None
        if listener is not None:
            listener.relax(residual)
        return o, final_state, residual

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, residual = ctx.saved_tensors
        *rest, save = ctx.rest
        if not save:
            raise RuntimeError("portable_gla::fwd was called with save=False: its gradients cannot be computed")
        do, dfinal_state, _ = gradients
        q, _, v, *_ = tensors
        if do is None:
            heads = _call([*tensors, *rest[:3]], "").heads
            do = v.new_zeros(()).expand(q.shape[0], q.shape[1], heads, v.shape[3])
        found = _bwd_op(*tensors, *rest, residual, do, dfinal_state)
        return (*(None if x is None else gradient for x, gradient in zip(tensors[:6], found, strict=True)), *[None] * 7)


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return cast("tuple[Tensor, ...]", _bwd_op(*args))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> None:
        raise RuntimeError("portable_gla.attention has no second derivative: call backward() without "
                           "create_graph=True, or use a plain PyTorch recurrence where one is needed")


def _differentiable(function: type[torch.autograd.Function], op: Any) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return function.apply(*args)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``fwd``; outside a trace, past the dispatcher's Autograd kernel, whose work is done here."""
    if torch.compiler.is_compiling():
        return cast("tuple[Tensor, Tensor, Tensor]", _fwd_op(*args))
    if args[-1]:  # save: some input requires a gradient
        return cast("tuple[Tensor, Tensor, Tensor]", _Attention.apply(*args))  # type: ignore[no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return cast("tuple[Tensor, Tensor, Tensor]", _fwd_op(*args))


_fwd_op = torch.ops.portable_gla.fwd.default
_bwd_op = torch.ops.portable_gla.bwd.default
_library.impl("fwd", _differentiable(_Attention, _fwd_op), "Autograd")
_library.impl("bwd", _differentiable(_AttentionBackward, _bwd_op), "Autograd")
