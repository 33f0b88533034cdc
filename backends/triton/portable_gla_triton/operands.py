"""What the matrix unit is given, by the inputs' dtype."""

from __future__ import annotations

import torch

EXACT = "bf16x6"
"""float32 as three bfloat16 each and six products: what is left out is below 2⁻²⁴.

TF32 three times (2⁻²²) missed the float32 budgets by up to 2.4 in emulation, and Triton's float32 products on the
vector unit keep whole operands in registers: 4 KiB of spills a thread.
"""


def kind(dtype: torch.dtype, target: str) -> str:
    """Return "bf16", "tf32", "bf16x6" or "ieee" (float32 products).

    float16 goes as TF32, which has its mantissa and float32's range: decays leave float16's own range at 10 nats. AMD's
    matrix unit multiplies float32 itself. float32 follows PyTorch's float32 matmul precision.
    """
    if dtype == torch.bfloat16:
        return "bf16"
    if target.startswith("gfx"):
        return "ieee"
    if dtype == torch.float16:
        return "tf32"
    return EXACT if torch.get_float32_matmul_precision() == "highest" else "tf32"
