"""Chooses a backend, keeps every reason against the others, and explains itself: ``print(plan)``."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from portable_gla import devices, registry, settings, validation
from portable_gla.backend import Backend, PartlyPlain
from portable_gla.cost import Cost, cost, format_bytes, format_seconds
from portable_gla.errors import PortabilityWarning, UnsupportedProblem
from portable_gla.problem import Device, Problem, Reason, Schedule


@dataclass(frozen=True)
class Plan:
    """Which backend runs a problem, why not another, and what that should cost.

    ``print(plan)`` is the explanation. All figures are predictions of the backends' own models and of
    ``devices.yaml``; nothing here was measured.
    """

    problem: Problem
    handle: str | None  # names the backend inside the ops; None: nothing serves the problem
    reasons: Mapping[str, tuple[Reason, ...]]  # per backend that is not chosen, in order of priority
    requested: str | None = None  # the backend that the user named
    fallback: bool = False  # plain PyTorch operations stepped in

    @property
    def backend(self) -> str | None:
        """The chosen backend's name, or None."""
        return None if self.handle is None else registry.get(self.handle).name

    @property
    def emulated(self) -> bool:
        """Whether the backend's emulator would run it."""
        return self.handle is not None and self.handle != self.backend

    @functools.cached_property
    def schedule(self) -> Schedule | None:
        """Tiles, launches and predicted bytes of the chosen backend."""
        return None if self.handle is None else registry.get(self.handle).schedule(self.problem)

    @functools.cached_property
    def cost(self) -> Cost:
        """Compulsory bytes, operations, floor times and peak memory."""
        return cost(self.problem, self.schedule)

    def __str__(self) -> str:
        return _explain(self)


def plan(*args: object, device: str | Device | None = None, backend: str | None = None, **kwargs: object) -> Plan:
    """Return the plan for a call, without running it.

    Either with the arguments of :func:`portable_gla.attention`, ``plan(q, k, v, g, ...)``, or with a tensor-free
    :class:`~portable_gla.Problem`, ``plan(problem, device="v100")``, whose device may be absent.

    Returns
    -------
    Plan
        ``plan.backend`` is None where nothing serves the problem (:func:`portable_gla.attention` raises then).

    Raises
    ------
    TypeError, ValueError
        For a malformed call, an unknown backend, or a device that ``devices.yaml`` does not know.
    """
    if args and isinstance(args[0], Problem):
        if len(args) > 1 or kwargs:
            raise TypeError("plan(problem): takes device= and backend= only beside a Problem")
        problem = args[0]
        if device is not None:
            problem = dataclasses.replace(
                problem, device=devices.named(device) if isinstance(device, str) else device)
        pins = settings.current().pins
        if pins:
            problem = dataclasses.replace(problem, pins=tuple(sorted({**dict(problem.pins), **dict(pins)}.items())))
        return choose(problem, backend)
    if device is not None:
        raise TypeError("plan(q, k, v, ...): device= goes with a Problem; tensors are on a device already")
    return plan_attention(*args, backend=backend, **kwargs)  # type: ignore[arg-type]


_plans: dict[tuple[object, ...], Plan] = {}
_MOST_PLANS = 4096


def plan_attention(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, *, scale: float | None = None,
    initial_state: Tensor | None = None, output_final_state: bool = False, cu_seqlens: Tensor | None = None,
    reverse: bool = False, bonus: Tensor | None = None, layout: str = "BTHD", backend: str | None = None,
) -> Plan:
    """Validate and plan one call; equal shapes, dtypes, devices and settings are one cached plan."""
    try:
        needs_grad = torch.is_grad_enabled() and (
            q.requires_grad or k.requires_grad or v.requires_grad or (g is not None and g.requires_grad)
            or (initial_state is not None and initial_state.requires_grad)
            or (bonus is not None and bonus.requires_grad))
        key: Any = (
            q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device,
            None if g is None else (g.shape, g.dtype, g.device),
            None if initial_state is None else (initial_state.shape, initial_state.dtype, initial_state.device),
            None if cu_seqlens is None else (cu_seqlens.shape, cu_seqlens.dtype, cu_seqlens.device),
            None if bonus is None else (bonus.shape, bonus.dtype, bonus.device),
            output_final_state, reverse, layout, backend, scale.__class__, needs_grad,
            settings.current(), registry.generation())
        found = _plans.get(key)
    except (AttributeError, TypeError):  # not tensors, or unhashable: validation says which
        key, found = None, None
    if found is not None:
        return found
    validation.check_scale(scale)
    validation.check_backend_name(backend)
    validation.check_attention(q, k, v, g, initial_state, cu_seqlens, bonus, layout)
    problem = describe(
        q, k, v, g, layout=layout, sequences=-1 if cu_seqlens is None else cu_seqlens.shape[0] - 1,
        initial_state=initial_state is not None, final_state=bool(output_final_state), reverse=bool(reverse),
        bonus=bonus is not None, training=needs_grad)
    found = choose(problem, backend)
    _remember(key, found)
    return found


def plan_decode(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, slots: Tensor | None,
                bonus: Tensor | None, out: Tensor | None, scale: float | None, backend: str | None) -> Plan:
    """Validate and plan one :func:`portable_gla.decode_`."""
    try:
        key: Any = (
            q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device,
            None if g is None else (g.shape, g.dtype, g.device), (state.shape, state.dtype, state.device),
            None if slots is None else (slots.shape, slots.dtype, slots.device),
            None if bonus is None else (bonus.shape, bonus.dtype, bonus.device),
            None if out is None else (out.shape, out.dtype, out.device),
            backend, scale.__class__, settings.current(), registry.generation(), "decode")
        found = _plans.get(key)
    except (AttributeError, TypeError):
        key, found = None, None
    if found is not None:
        return found
    validation.check_scale(scale)
    validation.check_backend_name(backend)
    validation.check_decode(q, k, v, g, state, slots, bonus, out)
    problem = describe(q, k, v, g, initial_state=True, final_state=True, bonus=bonus is not None, mode="decode")
    found = choose(problem, backend)
    _remember(key, found)
    return found


def _remember(key: tuple[object, ...] | None, found: Plan) -> None:
    if key is not None:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        _plans[key] = found


def describe(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, *, layout: str = "BTHD", sequences: int = -1,
             **flags: object) -> Problem:
    """Read the Problem off the tensors of a valid call."""
    token, head = (1, 2) if layout == "BTHD" else (2, 1)
    gate, gate_heads = "none", 0
    if g is not None:
        gate = {4: "channel", 3: "head", 1: "constant"}[g.dim()]
        gate_heads = g.shape[0] if g.dim() == 1 else g.shape[head]
    heads = max(q.shape[head], k.shape[head], v.shape[head], gate_heads)
    return Problem(
        tokens=q.shape[token], heads=heads, key_dim=q.shape[3], value_dim=v.shape[3], batch=q.shape[0],
        sequences=sequences, q_heads=q.shape[head], k_heads=k.shape[head], v_heads=v.shape[head],
        gate_heads=gate_heads, dtype=q.dtype, gate=gate, gate_dtype=None if g is None else g.dtype,
        packed=sequences >= 0, device=devices.of(q.device), pins=settings.current().pins,
        **flags)  # type: ignore[arg-type]


def choose(problem: Problem, backend: str | None = None) -> Plan:
    """Choose a backend: the one named, or the one of highest priority that has no reason against the problem."""
    emulated = settings.current().emulated
    if backend is not None and backend not in registry.names():
        raise ValueError(f"backend: expected one of {', '.join(registry.names())}, got {backend!r}")
    reasons: dict[str, tuple[Reason, ...]] = {}
    chosen: str | None = None
    for name in registry.handles():
        handle = registry.emulated_handle(name) if name == emulated else name
        found = registry.get(handle)
        here = found.unavailable() if problem.device.present else ()
        against = (*here, *found.reasons_against(problem), *_failed.get((handle, _kind(problem)), ()))
        if backend is not None:
            wanted = name == backend
        elif emulated is not None:
            wanted = name == emulated
        else:
            wanted = found.priority >= 0
        if wanted and not against and chosen is None:
            refused = _strict_refusal(_plain(found, problem), backend)
            if refused is None:
                chosen = handle
                continue
            against = (refused,)
        reasons[name] = against or (_not_wanted(backend, emulated, found.priority),)
    reasons.update({name: (reason,) for name, reason in registry.failures().items()})
    fallback = (chosen is not None and backend is None and emulated is None
                and _plain(registry.get(chosen), problem))
    return Plan(problem, chosen, reasons, backend, fallback)


def _plain(found: Backend, problem: Problem) -> bool:
    """Tell whether a backend would run a problem by plain PyTorch operations."""
    return found.plain or (isinstance(found, PartlyPlain) and found.plain_for(problem))


def _strict_refusal(plain: bool, backend: str | None) -> Reason | None:
    if plain and backend is None and settings.current().strict:
        return Reason("strict", "strict mode: the plain-PyTorch path is not taken on its own",
                      "name it (backend=...) or leave strict mode")
    return None


def _not_wanted(backend: str | None, emulated: str | None, priority: int) -> Reason:
    if backend is not None:
        return Reason("not-asked", f"could serve this, but {backend!r} was asked for")
    if emulated is not None:
        return Reason("not-asked", f"could serve this, but {emulated!r} is being emulated")
    if priority < 0:
        return Reason("by-name-only", "could serve this, and is used only by name", "pass backend=...")
    return Reason("priority", "could serve this; another backend has priority", "pass backend=... to use it")


def require(found: Plan) -> str:
    """Return the handle of a plan that can run; warn once per kind of problem where the plain backend steps in.

    Raises
    ------
    UnsupportedProblem
        If nothing serves the problem.
    """
    if found.handle is None:
        raise UnsupportedProblem(f"no backend serves this call\n{found}", found)
    if found.fallback:
        _warn_once(found)
    return found.handle


_failed: dict[tuple[str, Problem], tuple[Reason, ...]] = {}


def remember_failure(found: Plan, error: Exception) -> None:
    """Keep what stopped a plan's backend as its reason against every problem of that kind, in this process."""
    assert found.handle is not None
    _failed[found.handle, _kind(found.problem)] = (Reason(
        "kernel-error", f"failed when it was run: {error}", "name the backend to see the whole error"),)
    _plans.clear()


def _kind(problem: Problem) -> Problem:
    """Return a problem without its sizes in tokens: what one choice, or one warning, stands for."""
    return dataclasses.replace(problem, tokens=0, batch=0, sequences=0, pins=())


_warned: set[Problem] = set()


def _warn_once(found: Plan) -> None:
    kind = _kind(found.problem)
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(PortabilityWarning(f"plain PyTorch operations serve this call\n{found}"), stacklevel=4)


def _explain(found: Plan) -> str:
    problem, figures = found.problem, found.cost
    lines = [f"problem   {problem}", f"device    {problem.device}"]
    if found.backend is None:
        lines.append(f"backend   none{'' if found.requested is None else f' ({found.requested!r} was asked for)'}")
    else:
        how = " (emulated)" if found.emulated else " (plain PyTorch, the fallback)" if found.fallback else ""
        lines.append(f"backend   {found.backend}{how}")
    schedule = found.schedule
    if schedule is not None:
        backward = f" forward, {schedule.launches_backward} backward" if problem.training else ""
        tiles = ", ".join(f"{name} {value}" for name, value in schedule.tiles.items())
        lines += [f"tiles     {tiles or 'none'}", f"launches  {schedule.launches_forward}{backward}"]
        lines.append("bytes     " + _bytes("forward", schedule.bytes_forward, figures.compulsory_forward, problem))
        if problem.training:
            lines.append("          " + _bytes(
                "backward", schedule.bytes_backward, figures.compulsory_backward, problem))
    if figures.floor_forward is not None:
        text = f"forward {format_seconds(figures.floor_forward)}"
        if problem.training and figures.floor_backward is not None:
            text += f", backward {format_seconds(figures.floor_backward)}"
        lines.append(f"floor     {text} (compulsory bytes and operations at devices.yaml's rates)")
    if schedule is not None and figures.peak_memory is not None:
        lines.append(f"memory    {format_bytes(figures.peak_memory)} at the peak, "
                     f"of it {format_bytes(schedule.residual_bytes)} residuals, "
                     f"{format_bytes(schedule.workspace_bytes)} workspace")
        lines += [f"note      {note}" for note in schedule.notes]
    for name, reasons in found.reasons.items():
        for reason in reasons:
            hint = f" -> {reason.hint}" if reason.hint else ""
            lines.append(f"not {name}: {reason.text} [{reason.code}]{hint}")
    return "\n".join(lines)


def _bytes(name: str, predicted: int, compulsory: int, problem: Problem) -> str:
    each = predicted / problem.token_heads if problem.token_heads else 0.0
    ratio = f", {predicted / compulsory:.2f} x compulsory" if compulsory else ""
    return f"{name} {format_bytes(predicted)} predicted ({each:.0f} per token-head{ratio})"
