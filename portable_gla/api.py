"""The two calls that compute: :func:`attention` and :func:`decode_`."""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from portable_gla import devices, ops, planning, settings, validation
from portable_gla.errors import KernelError
from portable_gla.problem import Problem


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    bonus: Tensor | None = None,
    layout: str = "BTHD",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute gated linear attention on the device that the tensors are on.

    ::

        S_t = diag(exp(g_t)) S_{t-1} + k_t v_tᵀ          (K × V state per head)
        o_t = scale · S_tᵀ q_t

    H is the largest head count of q, k, v and g; every other divides it, and output head h reads head
    ``h * Hx // H`` of tensor x, without a copy.

    Parameters
    ----------
    q, k
        [B, T, Hq, K] and [B, T, Hk, K]; float16, bfloat16, float32 (float64 on a CPU). Strides are free.
    v
        [B, T, Hv, V], in q's dtype.
    g
        Natural log of the decay, in q's dtype or float32: [B, T, Hg, K] per channel (GLA), [B, T, Hg] per head
        (Mamba-2, simple GLA), [Hg] constant (RetNet, Lightning), or None (plain linear attention). ``-inf`` is an
        exact reset; every g ≤ 0 is computed to the stated error budget.
    scale
        Factor on o; default ``K ** -0.5``.
    initial_state
        [N or 1, H, K, V] in any float dtype; 1 is broadcast over the N sequences.
    output_final_state
        Return the state after the last token as well.
    cu_seqlens
        int32 or int64 [N + 1], 0 = c₀ ≤ c₁ ≤ … ≤ c_N = T: N sequences packed along T, with B = 1. Empty ones are
        legal. Its values are checked where it is on the CPU; on an accelerator that would synchronise.
    reverse
        Run right to left: state t gathers the tokens ≥ t, and the final state is the one at the first token.
    bonus
        [H, K], RWKV-6's u: o_t = scale · (S_{t-1} + diag(u) k_t v_tᵀ)ᵀ q_t.
    layout
        ``"BTHD"`` as above, or ``"BHTD"``: heads before time in q, k, v, g and o.
    backend
        A backend's name: used or refused, never replaced. None: the best that serves the call.

    Returns
    -------
    o : Tensor
        [B, T, H, V] in v's dtype (BHTD: [B, H, T, V]).
    final_state : Tensor
        [N, H, K, V] in float32 (float64 for float64 inputs); only with ``output_final_state``.

    Raises
    ------
    TypeError, ValueError
        A malformed call: the argument, what was expected, what came.
    UnsupportedProblem
        No backend serves the call; the message has every backend's reasons and a hint for each.
    KernelError
        The named backend's kernel could not be built or launched; with ``backend=None`` the next one serves.
    torch.OutOfMemoryError
        The device's memory is too small; the message has the plan, with what it needs.

    Notes
    -----
    Gradients flow to q, k, v, g, initial_state and bonus; a second derivative raises RuntimeError. Two runs on one
    device are equal to the bit. Under ``torch.autocast`` q, k and v are cast to its dtype. The recurrence is that of
    Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (2023).

    Examples
    --------
    >>> q, k, v = (torch.randn(1, 100, 2, 16) for _ in range(3))
    >>> g = torch.nn.functional.logsigmoid(torch.randn(1, 100, 2, 16))
    >>> o, state = attention(q, k, v, g, output_final_state=True)
    >>> o.shape, state.shape
    (torch.Size([1, 100, 2, 16]), torch.Size([1, 2, 16, 16]))
    """
    if isinstance(q, Tensor) and ops.autocasting(q.device.type):
        q, k, v, g = _autocast(q, k, v, g)
    found: planning.Plan | None = None
    if torch.compiler.is_compiling():
        handle, pins, save = _choose_while_tracing(
            q, k, v, g, scale, initial_state, output_final_state, cu_seqlens, reverse, bonus, layout, backend)
    else:
        found = planning.plan_attention(
            q, k, v, g, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
            cu_seqlens=cu_seqlens, reverse=reverse, bonus=bonus, layout=layout, backend=backend)
        handle = planning.require(found)
        pins, save = ops.format_pins(found.problem.pins), found.problem.training
    turned = (q, k, v, g)
    if layout == "BHTD":
        turned = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                  g.transpose(1, 2) if g is not None and g.dim() > 1 else g)
    arguments = (*turned, initial_state, bonus, cu_seqlens, q.shape[-1] ** -0.5 if scale is None else float(scale),
                 bool(reverse), bool(output_final_state), handle, pins, save)
    if found is None:
        o, final_state, _ = ops.forward(*arguments)
    else:
        try:
            o, final_state, _ = ops.forward(*arguments)
        except KernelError as error:
            if backend is not None:
                raise KernelError(f"{error}\n{found}") from error
            planning.remember_failure(found, error)  # a reason against this backend from now on: another is planned
            return attention(
                q, k, v, g, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
                cu_seqlens=cu_seqlens, reverse=reverse, bonus=bonus, layout=layout)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(f"{error}\n{found}") from error
    if layout == "BHTD":
        o = o.transpose(1, 2)
    return (o, final_state) if output_final_state else o


def decode_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    state: Tensor,
    *,
    slots: Tensor | None = None,
    scale: float | None = None,
    bonus: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Decode one or a few tokens per sequence, updating the states in place.

    Equal to :func:`attention` on the same tokens within the error budget; for inference only, without gradients.

    Parameters
    ----------
    q, k, v, g, scale, bonus, backend
        As in :func:`attention`, in layout BTHD, with small T.
    state
        [P, H, K, V], any float dtype, updated in place: a pool of P states.
    slots
        int32 or int64 [B]: the row of the pool that each sequence uses, no row twice; −1 skips the sequence, whose
        rows of o are then zero. None means P = B. Its values are checked where it is on the CPU only.
    out
        [B, T, H, V] in q's dtype, to receive o; None allocates it.

    Returns
    -------
    Tensor
        o [B, T, H, V] in v's dtype: ``out`` where it was given.

    Raises
    ------
    TypeError, ValueError
        A malformed call.
    UnsupportedProblem
        No backend serves the call.
    RuntimeError
        If an input requires a gradient while gradients are enabled.
    """
    if isinstance(q, Tensor) and ops.autocasting(q.device.type):
        q, k, v, g = _autocast(q, k, v, g)
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (q, k, v, g, state, bonus)):
        raise RuntimeError("decode_ updates its state in place and has no gradient: call it under torch.no_grad(), "
                           "or use attention(..., output_final_state=True)")
    if torch.compiler.is_compiling():
        handle = _choose_decode_while_tracing(q, k, v, g, state, slots, bonus, out, scale, backend)
    else:
        handle = planning.require(
            planning.plan_decode(q, k, v, g, state, slots, bonus, out, scale, backend))
    if out is None:
        heads = state.shape[1]
        out = v.new_empty(q.shape[0], q.shape[1], heads, v.shape[3])
    torch.ops.portable_gla.decode.default(
        q, k, v, g, state, slots, bonus, q.shape[-1] ** -0.5 if scale is None else float(scale), handle, out)
    return out


def _autocast(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cast as autocast casts a matrix product's operands (float64 and other devices stay); g keeps float32."""
    device_type = q.device.type
    dtype = torch.get_autocast_dtype(device_type)

    def eligible(x: object) -> bool:
        return (isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
                and x.device.type == device_type)

    q, k, v = (x.to(dtype) if eligible(x) else x for x in (q, k, v))
    if eligible(g) and g.dtype != torch.float32:  # type: ignore[union-attr]
        g = g.to(dtype)  # type: ignore[union-attr]
    return q, k, v, g


# Under torch.compile the checks are traced (they become guards), and the choice is made once, on what does not vary:
# planning must not see a symbolic T. backend.reasons_against promises that T does not matter.


def _choose_while_tracing(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float | None, initial_state: Tensor | None,
    output_final_state: bool, cu_seqlens: Tensor | None, reverse: bool, bonus: Tensor | None, layout: str,
    backend: str | None,
) -> tuple[str, str, bool]:
    validation.check_scale(scale)
    validation.check_backend_name(backend)
    validation.check_attention(q, k, v, g, initial_state, cu_seqlens, bonus, layout)
    save = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, g, initial_state, bonus))
    head = 2 if layout == "BTHD" else 1
    handle, pins = _chosen(
        _constant_sizes(q, k, v, g, head), q.dtype, None if g is None else g.dtype, q.device, "attention", backend,
        save, cu_seqlens is not None, initial_state is not None, bool(output_final_state), bool(reverse),
        bonus is not None)
    return handle, pins, save


def _choose_decode_while_tracing(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, slots: Tensor | None, bonus: Tensor | None,
    out: Tensor | None, scale: float | None, backend: str | None,
) -> str:
    validation.check_scale(scale)
    validation.check_backend_name(backend)
    validation.check_decode(q, k, v, g, state, slots, bonus, out)
    handle, _ = _chosen(
        _constant_sizes(q, k, v, g, 2), q.dtype, None if g is None else g.dtype, q.device, "decode", backend,
        False, False, True, True, False, bonus is not None)
    return handle


def _constant_sizes(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, head: int) -> tuple[int, ...]:
    """Return the head counts, K, V and g's rank; ``index`` makes a symbolic size a constant of the graph."""
    rank = 0 if g is None else g.dim()
    gate_heads = 0 if g is None else g.shape[0] if rank == 1 else g.shape[head]
    sizes = (q.shape[head], k.shape[head], v.shape[head], gate_heads, q.shape[3], v.shape[3], rank)
    return tuple([operator.index(size) for size in sizes])


def _chosen(
    sizes: tuple[int, ...],
    dtype: torch.dtype, gate_dtype: torch.dtype | None, device: torch.device, mode: str, backend: str | None,
    training: bool, packed: bool, initial_state: bool, final_state: bool, reverse: bool, bonus: bool,
) -> tuple[str, str]:
    q_heads, k_heads, v_heads, gate_heads, key_dim, value_dim, gate_rank = sizes
    problem = Problem(
        tokens=1024, heads=max(q_heads, k_heads, v_heads, gate_heads), key_dim=key_dim, value_dim=value_dim,
        q_heads=q_heads, k_heads=k_heads, v_heads=v_heads, gate_heads=gate_heads, dtype=dtype,
        gate={0: "none", 1: "constant", 3: "head", 4: "channel"}[gate_rank], gate_dtype=gate_dtype, packed=packed,
        initial_state=initial_state, final_state=final_state, reverse=reverse, bonus=bonus, training=training,
        mode=mode, device=devices.of(device), pins=settings.current().pins)
    return planning.require(planning.choose(problem, backend)), ops.format_pins(problem.pins)


# What torch.compiler.assume_constant_result does; calling it would import torch._dynamo, and that Triton.
_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]
