"""flash-linear-attention's calls for GLA and simple GLA, on any device: signatures and return values of 0.5 and 0.6.

Change ``from fla.ops.gla import chunk_gla`` to ``from portable_gla.compat.fla import chunk_gla``. All of them compute
the same recurrence, so chunked, recurrent and parallel forms differ in their signatures only; the plan decides how it
is run. What differs from the original:

* an unknown keyword raises TypeError, where the original ignores some;
* malformed shapes and dtypes raise ValueError and TypeError, where the original asserts;
* shared heads (grouped queries), any float dtype of ``initial_state``, and gates of -inf are served;
* ``g_gamma`` receives a gradient; float64 inputs are computed, and return their state, in float64;
* ``fused_chunk_gla`` is served, where the original raises NotImplementedError.

Source of the calls: https://github.com/fla-org/flash-linear-attention (signatures and semantics; no code).
"""

from portable_gla.compat.fla.gla import chunk_gla, fused_chunk_gla, fused_recurrent_gla
from portable_gla.compat.fla.simple_gla import (
    chunk_simple_gla,
    fused_chunk_simple_gla,
    fused_recurrent_simple_gla,
    parallel_simple_gla,
)

__all__ = [
    "chunk_gla", "chunk_simple_gla", "fused_chunk_gla", "fused_chunk_simple_gla", "fused_recurrent_gla",
    "fused_recurrent_simple_gla", "parallel_simple_gla",
]
