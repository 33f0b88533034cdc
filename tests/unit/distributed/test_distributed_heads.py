"""Heads sharded over ranks: a layer's output and gradients are one process's, however it is cut into pieces."""

from __future__ import annotations

import pytest
import tasks_heads
import torch
from worlds import Error


@pytest.mark.parametrize("pieces", (1, 3, 50))
@pytest.mark.parametrize("heads", [(2, 2), (3, 1), (1, 2, 1), (1, 1, 1, 1)], ids=str)
def test_a_layer_with_sharded_heads_is_the_whole_layer(world, seed, heads, pieces):
    parts = world(len(heads)).run("tasks_heads:run", seed, list(heads), pieces)
    y, dx, *dweights, dbias = tasks_heads.whole(seed)
    for found, dfound, *dshards, dshared in parts:
        for value, right in ((found, y), (dfound, dx), (dshared, dbias)):
            torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        del dshards
    for index, right in enumerate(dweights):
        dim = 1 if index == len(dweights) - 1 else 0
        together = torch.cat([part[2 + index] for part in parts], dim)
        torch.testing.assert_close(together, right, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(part[0], parts[0][0]) and torch.equal(part[1], parts[0][1]) for part in parts)


@pytest.mark.parametrize("change, kind, said", [
    ("weight", "ValueError", "weight_shard: expected shape [D, 6]"),
    ("dtype", "TypeError", "weight_shard: expected dtype torch.float32 as x"),
    ("bias", "ValueError", "bias: expected shape [5], got [4]"),
    (0, "ValueError", "pieces: expected 1 or more, got 0"),
    (2.0, "TypeError", "pieces: expected an integer, got float"),
])
def test_what_does_not_fit_is_refused(world, change, kind, said):
    found = world(2)
    found.start("tasks_heads:refuse", change)
    for rank in range(2):
        error = found.result(rank)
        assert isinstance(error, Error) and error.kind == kind
        assert said in error.message
