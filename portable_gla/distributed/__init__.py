"""Gated linear attention over many devices, with ``torch.distributed``; imported on demand only.

:func:`attention` shards the sequence: volume independent of its length. :func:`row_parallel_projection` and
:func:`head_parallel_input` shard the heads around a plain :func:`portable_gla.attention`.
"""

from portable_gla.distributed.agreement import agree
from portable_gla.distributed.api import attention
from portable_gla.distributed.errors import Disagreement, RankFailure
from portable_gla.distributed.sharding import Sharding

__all__ = ["Disagreement", "RankFailure", "Sharding", "agree", "attention"]
