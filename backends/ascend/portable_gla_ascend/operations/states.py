"""The states, from chunk to chunk: the only thing that is computed one step after another."""

from __future__ import annotations

import torch
from torch import Tensor

from portable_gla_ascend.operations.layout import Slab


def advance(slab: Slab, added: Tensor, decay: Tensor, carry: Tensor) -> Tensor:
    """Return the state before every row: a state after a row is decay · before + added.

    added [rows, H, K, V]; decay [rows, H, K or 1, 1]; carry [sequences, H, K, V] becomes the states after the slab.
    """
    before = torch.empty_like(added)
    steps = slab.steps()
    before[:steps[0][1]] = carry[:steps[0][1]]
    for (start, end), (_, following) in zip(steps, [*steps[1:], (0, steps[-1][1])], strict=True):
        going = following - end  # sequences that have another chunk in this slab
        for first, last, target in ((start, start + going, before[end:following]),
                                    (start + going, end, carry[going:end - start])):
            if last > first:
                torch.addcmul(added[first:last], decay[first:last], before[first:last], out=target)
    return before


def retreat(slab: Slab, added: Tensor, decay: Tensor, carry: Tensor) -> Tensor:
    """Return the gradient of the state after every row: that of the state before a row is decay · after + added.

    carry [sequences, H, K, V] comes as the gradient of the states after the slab and becomes that of those before it.
    """
    after = torch.empty_like(added)
    steps = slab.steps()
    running = 0
    for index, (start, end) in reversed(list(enumerate(steps))):
        if end - start > running:  # sequences whose last chunk of this slab is here
            after[start + running:end] = carry[running:end - start]
        running = end - start
        before = steps[index - 1][0] if index else 0
        target = after[before:before + running] if index else carry[:running]
        torch.addcmul(added[start:end], decay[start:end], after[start:end], out=target)
    return after
