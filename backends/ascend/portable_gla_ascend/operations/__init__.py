"""The path without Triton-Ascend: PyTorch operations, chunked so that the matrix unit does the work.

Every sequence is cut into chunks of 64 tokens. The products of all chunks of a slab are batched matrix products; what
is left for the vector unit are exponentials, one a gate, and products of decays. Only the states go from chunk to
chunk, one operation a step for all sequences. bfloat16 operands stay bfloat16; float16 is computed in float32, whose
range the states and the scores need.
"""

from portable_gla_ascend.operations.attention import backward, forward
from portable_gla_ascend.operations.decoding import decode
from portable_gla_ascend.operations.figures import schedule

__all__ = ["backward", "decode", "forward", "schedule"]
