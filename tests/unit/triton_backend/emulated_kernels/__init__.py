"""Small kernels that the emulator's tests launch."""

from .movement import copy, exchange, gather_rows, overwrite, scale_in_place, shift, through_descriptor, window
from .numbers import bfloat16_arithmetic, cast, elementary, extremes
from .products import batched, multiply
from .statements import (
    argmax_rows,
    block_condition,
    branch,
    carry,
    chained,
    far,
    logical,
    loops,
    scans,
    shapes,
    standard,
    two_scans,
)
from .ways import apart, walk, walk_and_carry, walk_and_read_back, walk_into_another

__all__ = [
    "apart", "argmax_rows", "batched", "bfloat16_arithmetic", "block_condition", "branch", "carry", "cast",
    "chained", "copy", "elementary", "exchange", "extremes", "far", "gather_rows", "logical", "loops", "multiply",
    "overwrite", "scale_in_place", "scans", "shapes", "shift", "standard", "through_descriptor", "two_scans",
    "walk", "walk_and_carry", "walk_and_read_back", "walk_into_another", "window",
]
