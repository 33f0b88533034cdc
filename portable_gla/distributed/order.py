"""Which runs of the sequence each rank holds."""

from __future__ import annotations

from collections.abc import Sequence

ORDERS = ("contiguous", "head-tail")
Order = str | Sequence[Sequence[int]]


def runs_of_ranks(order: Order, ranks: int) -> tuple[tuple[int, ...], ...]:
    """Return the runs of each rank, numbered along the sequence, in the order in which the rank's shard holds them.

    Parameters
    ----------
    order
        ``"contiguous"``: rank r holds run r of P. ``"head-tail"``: rank r holds runs r and 2P − 1 − r of 2P, which
        gives every rank the same work in a causal softmax layer. Or the runs themselves, one sequence of numbers for
        each rank: ``[[0, 5], [1, 4], [2, 3]]`` is head-tail on three ranks.
    ranks
        P.

    Raises
    ------
    TypeError, ValueError
        If it is none of these, or does not hold every run once.
    """
    if isinstance(order, str):
        if order == "contiguous":
            return tuple((rank,) for rank in range(ranks))
        if order == "head-tail":
            return tuple((rank, 2 * ranks - 1 - rank) for rank in range(ranks))
        raise ValueError(f"order: expected one of {ORDERS} or the runs of each rank, got {order!r}")
    try:
        found = tuple(tuple(runs) for runs in order)
    except TypeError:
        raise TypeError(f"order: expected one of {ORDERS} or the runs of each rank, got {order!r}") from None
    if len(found) != ranks:
        raise ValueError(f"order: expected the runs of {ranks} ranks, got {len(found)}")
    every = [run for runs in found for run in runs]
    if any(isinstance(run, bool) or not isinstance(run, int) for run in every):
        raise TypeError(f"order: expected integers, got {order!r}")
    if sorted(every) != list(range(len(every))):
        raise ValueError(f"order: expected each of the runs 0 to {len(every) - 1} once, got {order!r}")
    return found


def lengths_of_runs(runs: Sequence[int] | None, count: int, tokens: int) -> tuple[int, ...]:
    """Return the lengths of one rank's runs: those given, or its tokens in ``count`` parts, the first the longest.

    Raises
    ------
    TypeError, ValueError
        If those given are not ``count`` lengths that sum to ``tokens``.
    """
    if runs is None:
        if not count:
            if tokens:
                raise ValueError(f"order: this rank has {tokens} tokens and no run")
            return ()
        part, rest = divmod(tokens, count)
        return tuple(part + (index < rest) for index in range(count))
    found = tuple(runs)
    if any(isinstance(length, bool) or not isinstance(length, int) for length in found):
        raise TypeError(f"runs: expected integers, got {runs!r}")
    if len(found) != count or min(found, default=0) < 0 or sum(found) != tokens:
        raise ValueError(f"runs: expected {count} lengths of 0 or more that sum to this rank's T = {tokens}, "
                         f"got {list(found)}")
    return found
