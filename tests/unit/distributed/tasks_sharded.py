"""What one rank does of a case: its shard of the inputs, forward and backward."""

from __future__ import annotations

import torch

from portable_gla.distributed import agree, attention, decays
from portable_gla.distributed.order import lengths_of_runs, runs_of_ranks
from portable_gla.testing import inputs as numbers

TENSORS = ("q", "k", "v", "g", "initial_state", "bonus")


def positions(lengths, order, runs, size):
    """Say which tokens of the whole sequence each rank holds, given the ranks' T or the lengths of their runs."""
    placed = runs_of_ranks(order, size)
    parts = {}
    for rank, held in enumerate(placed):
        given = None if runs is None else runs[rank]
        for run, length in zip(held, lengths_of_runs(given, len(held), lengths[rank]), strict=True):
            parts[run] = length
    starts, start = {}, 0
    for run in sorted(parts):
        starts[run] = start
        start += parts[run]
    return [torch.cat([torch.arange(starts[run], starts[run] + parts[run]) for run in held]
                      or [torch.arange(0)]) for held in placed]


def run(rank, size, case, seed, lengths, order="contiguous", runs=None, options=None):
    """Return this rank's o, final state and gradients; ``tiny_tiles`` among the options makes tiles of one chunk."""
    options = dict(options or {})
    genuine = decays.tile_bytes
    if options.pop("tiny_tiles", False):
        decays.tile_bytes = lambda device: 1
    try:
        return _run(rank, size, case, seed, lengths, order, runs, options)
    finally:
        decays.tile_bytes = genuine


def _run(rank, size, case, seed, lengths, order, runs, options):
    whole = numbers.make(case, seed)
    mine = positions(lengths, order, runs, size)[rank]
    leaves = {}
    for name, x in numbers.tensors(whole):
        sharded = name in ("q", "k", "v") or (name == "g" and x.dim() > 1)
        leaves[name] = (x[:, mine] if sharded else x).detach().clone().requires_grad_()
    do = whole.do[:, mine]
    agreed = options.pop("agreed", False)
    turned = dict(leaves)
    if case.layout == "BHTD":
        for name in ("q", "k", "v", "g"):
            if name in turned and turned[name].dim() > 1:
                turned[name] = turned[name].transpose(1, 2)
    arguments = {"scale": case.scale, "output_final_state": case.final_state, "cu_seqlens": whole.cu_seqlens,
                 "reverse": case.reverse, "layout": case.layout, "order": order,
                 "runs": None if runs is None else runs[rank], **options}
    if agreed:
        arguments["sharding"] = agree(**turned, **arguments)
    found = attention(**turned, **arguments)
    o, final = found if case.final_state else (found, None)
    if case.layout == "BHTD":
        o = o.transpose(1, 2)
    loss = (o * do).sum()
    if final is not None:
        # Every rank's share of the gradient that comes back to the final state: they add up to the whole one.
        shares = torch.softmax(torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), 0)
        loss = loss + shares[rank].item() * (final * whole.dfinal_state).sum()
    loss.backward()
    results = {"o": o.detach(), **{f"d{name}": x.grad for name, x in leaves.items()}}
    if final is not None:
        results["final_state"] = final.detach()
    return results


def gather(parts, case, lengths, order="contiguous", runs=None):
    """Put the ranks' results together as one process would have them."""
    where = positions(lengths, order, runs, len(parts))
    found = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name == "final_state":
            assert all(torch.equal(value, values[0]) for value in values)
            found[name] = values[0]
        elif name in ("dinitial_state", "dbonus") or values[0].dim() == 1:
            found[name] = sum(values)
        else:
            x = values[0].new_full((values[0].shape[0], case.tokens, *values[0].shape[2:]), torch.nan)
            for index, value in zip(where, values, strict=True):
                x[:, index] = value
            found[name] = x
    return found
