"""Gated linear attention over many devices, with ``torch.distributed``; imported on demand only.

:func:`attention` shards the sequence: volume independent of its length; :func:`sum_gradients` adds up what each rank
then has of the parameters' gradients. :func:`row_parallel_projection` and
:func:`head_parallel_input` shard the heads around a plain :func:`portable_gla.attention`.
"""

from portable_gla.distributed.agreement import agree
from portable_gla.distributed.api import attention
from portable_gla.distributed.errors import Disagreement, RankFailure
from portable_gla.distributed.gradients import sum_gradients
from portable_gla.distributed.projection import head_parallel_input, row_parallel_projection
from portable_gla.distributed.sharding import Sharding

__all__ = ["Disagreement", "RankFailure", "Sharding", "agree", "attention", "head_parallel_input",
           "row_parallel_projection", "sum_gradients"]
