"""The one way from these signatures to :func:`portable_gla.attention`."""

from __future__ import annotations

from torch import Tensor

from portable_gla.api import attention
from portable_gla.compat.fla import _arguments
from portable_gla.compat.fla._value_gate import attention_with_value_gate


def run(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, *, scale: float | None, initial_state: Tensor | None,
    output_final_state: bool, state_v_first: bool = False, cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None, reverse: bool = False, gv: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return o and the final state, or None where it was not asked for; states are [V, K] if ``state_v_first``."""
    _arguments.check_state_layout(state_v_first)
    _arguments.check_packing(q, initial_state, cu_seqlens, cu_seqlens_cpu)
    if state_v_first and initial_state is not None:
        initial_state = initial_state.transpose(-1, -2)
    if gv is None:
        found = attention(q, k, v, g, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
                          output_final_state=output_final_state, reverse=reverse)
    else:
        found = attention_with_value_gate(q, k, v, g, gv, scale=scale, initial_state=initial_state,
                                          cu_seqlens=cu_seqlens, output_final_state=output_final_state,
                                          reverse=reverse)
    if isinstance(found, Tensor):
        return found, None
    o, final_state = found
    return o, final_state.transpose(-1, -2).contiguous() if state_v_first else final_state
