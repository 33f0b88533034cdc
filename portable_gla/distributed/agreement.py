"""Before any work: do all ranks describe the same call? One gather of small descriptions answers it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from portable_gla import planning, validation
from portable_gla.distributed import collectives, sharding
from portable_gla.distributed.errors import Disagreement
from portable_gla.distributed.groups import Group, resolve
from portable_gla.distributed.order import Order, lengths_of_runs, runs_of_ranks
from portable_gla.distributed.sharding import Sharding
from portable_gla.errors import UnsupportedProblem

BYTES = 4096
"""Of one rank's description on the wire."""


def agree(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    group: Any = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    bonus: Tensor | None = None,
    layout: str = "BTHD",
    backend: str | None = None,
    order: Order = "contiguous",
    runs: Sequence[int] | None = None,
    overlap: int = 1,
) -> Sharding:
    """Compare the ranks' descriptions of a call, and return what later calls may pass as ``sharding=``.

    One gather of 4 KiB per rank, whose answer the host waits for; a training loop with constant shapes makes it once.
    The arguments are those of :func:`portable_gla.distributed.attention`, and only their descriptions are read (of
    ``cu_seqlens`` the values, which synchronises where it lies on an accelerator).

    Raises
    ------
    Disagreement
        If ranks disagree, or one of them refuses its shard: on every rank, with the same message.
    TypeError, ValueError, UnsupportedProblem
        If all of them refuse it for the same reason.
    RankFailure
        If a rank does not come.
    """
    found = resolve(group)
    facts: dict[str, object] = {}
    refusal: Exception | None = None
    ends: tuple[int, ...] | None = None
    try:
        ends = None if cu_seqlens is None else _ends(cu_seqlens)
        facts = describe(q, k, v, g, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
                         ends=ends, reverse=reverse, bonus=bonus, layout=layout, backend=backend, order=order,
                         runs=runs, overlap=overlap, ranks=found.size, rank=found.rank)
        plan = planning.plan_attention(q, k, v, g, scale=scale, reverse=reverse, bonus=bonus, layout=layout,
                                       backend=backend, output_final_state=True)
        if plan.handle is None:
            planning.require(plan)  # raises; where a plan only warns, the local pass does
    except (TypeError, ValueError, UnsupportedProblem) as error:
        refusal = error
    everyone = _gather(found, q, {"refusal": _line(refusal)} if refusal is not None else facts)
    _compare(everyone, refusal, found)
    lengths = [list(map(int, theirs["runs"])) for theirs in everyone]
    tokens = sum(map(sum, lengths))
    if ends is not None and ends[-1] != tokens:
        raise ValueError(f"cu_seqlens: expected to end at the whole sequence's T = {tokens}, got {ends[-1]}")
    batch = facts["B"]
    assert isinstance(batch, int)
    return sharding.build(found.rank, lengths, runs_of_ranks(order, found.size), batch, ends, bool(reverse), facts)


def describe(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, *, scale: float | None, initial_state: Tensor | None,
             output_final_state: bool, ends: tuple[int, ...] | None, reverse: bool, bonus: Tensor | None, layout: str,
             backend: str | None, order: Order, runs: Sequence[int] | None, overlap: int, ranks: int,
             rank: int) -> dict[str, object]:
    """Check one rank's arguments as far as it can alone, and describe them.

    Raises
    ------
    TypeError, ValueError
        As :func:`portable_gla.attention` does.
    """
    validation.check_scale(scale)
    validation.check_backend_name(backend)
    validation.check_attention(q, k, v, g, None, None, bonus, layout)
    token, head = (1, 2) if layout == "BTHD" else (2, 1)
    batch, tokens, key_dim, value_dim = q.shape[0], q.shape[token], q.shape[3], v.shape[3]
    counts = {"q": q.shape[head], "k": k.shape[head], "v": v.shape[head]}
    if g is not None:
        counts["g"] = g.shape[0] if g.dim() == 1 else g.shape[head]
    heads = max(counts.values())
    if ends is not None and batch != 1:
        raise ValueError(f"cu_seqlens: expected B = 1 for packed sequences, got B = {batch}")
    if initial_state is not None:
        _check_state(initial_state, q, batch if ends is None else len(ends) - 1, heads, value_dim)
    if isinstance(overlap, bool) or not isinstance(overlap, int):
        raise TypeError(f"overlap: expected an integer, got {type(overlap).__name__}")
    if overlap < 1 or any(count % overlap for count in counts.values()):
        raise ValueError(f"overlap: expected a divisor of every head count {counts}, got {overlap}")
    placed = runs_of_ranks(order, ranks)
    inputs = [x for x in (q, k, v, g, initial_state, bonus) if x is not None]
    return {
        "tokens": tokens, "runs": list(lengths_of_runs(runs, len(placed[rank]), tokens)),
        "gradients": torch.is_grad_enabled() and any(x.requires_grad for x in inputs),
        "ranks": ranks, "B": batch, "K": key_dim, "V": value_dim, "dtype": _dtype(q),
        **{f"heads of {name}": count for name, count in counts.items()},
        "gate": "none" if g is None else {1: "constant", 3: "per head", 4: "per channel"}[g.dim()],
        "gate's dtype": None if g is None else _dtype(g),
        "bonus": None if bonus is None else _dtype(bonus),
        "initial_state": None if initial_state is None else [list(initial_state.shape), _dtype(initial_state)],
        "output_final_state": bool(output_final_state), "reverse": bool(reverse),
        "scale": key_dim ** -0.5 if scale is None else float(scale), "overlap": overlap,
        "order": order if isinstance(order, str) else [list(theirs) for theirs in placed],
        "cu_seqlens": None if ends is None else
        f"{len(ends)} entries, digest {hashlib.sha256(repr(ends).encode()).hexdigest()[:16]}",
    }


def check_again(agreed: Sharding, facts: dict[str, object], group: Group) -> None:
    """Refuse a call that is not the one that ``agreed`` describes; only this rank can say so."""
    if (agreed.ranks, agreed.rank) != (group.size, group.rank):
        raise ValueError(f"sharding: it was agreed on by rank {agreed.rank} of {agreed.ranks}, this is rank "
                         f"{group.rank} of {group.size}")
    for name, value in agreed.facts.items():
        if name != "gradients" and facts[name] != value:
            raise ValueError(f"sharding: it was agreed on for {name} = {value}, this call has {facts[name]}; "
                             "agree again")


def ends_again(agreed: Sharding, cu_seqlens: Tensor | None) -> tuple[int, ...] | None:
    """Return the agreed ``cu_seqlens``; values of a tensor on an accelerator are not compared."""
    if cu_seqlens is None or cu_seqlens.device.type != "cpu":
        return agreed.cu_seqlens
    return tuple(cu_seqlens.tolist())


def _ends(cu_seqlens: Tensor) -> tuple[int, ...]:
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens: expected a tensor [N + 1], N + 1 >= 1, got "
                         + (f"shape {list(cu_seqlens.shape)}" if isinstance(cu_seqlens, Tensor)
                            else type(cu_seqlens).__name__))
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens: expected dtype int32, int64, got {_dtype(cu_seqlens)}")
    found = tuple(cu_seqlens.tolist())
    validation.check_cu_seqlens_values(torch.tensor(found), found[-1])  # where it ends is the ranks' affair
    return found


def _check_state(state: Tensor, q: Tensor, documents: int, heads: int, value_dim: int) -> None:
    if not isinstance(state, Tensor):
        raise TypeError(f"initial_state: expected a tensor [N or 1, H, K, V], got {type(state).__name__}")
    if state.dtype not in validation.FLOATS:
        raise TypeError(f"initial_state: expected a floating dtype, got {_dtype(state)}")
    if state.device != q.device:
        raise ValueError(f"initial_state: expected on q's device {q.device}, got {state.device}")
    expected = [heads, q.shape[3], value_dim]
    if state.dim() != 4 or list(state.shape[1:]) != expected or state.shape[0] not in (1, documents):
        raise ValueError(f"initial_state: expected shape {[documents, *expected]} or {[1, *expected]} "
                         f"([N or 1, H, K, V]), got {list(state.shape)}")


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}"[:1024]


def _gather(group: Group, q: object, facts: dict[str, object]) -> list[dict[str, Any]]:
    text = json.dumps(facts).encode()
    if len(text) > BYTES:
        text = json.dumps({"refusal": f"ValueError: order: {len(text)} bytes describe this rank's call, of which its "
                                      f"runs must be too many; {BYTES} is the most"}).encode()
    message = torch.frombuffer(bytearray(text.ljust(BYTES)), dtype=torch.uint8)
    device = group.wire(q if isinstance(q, Tensor) else None)
    gathered = collectives.all_gather(group, message.to(device), "the gather of descriptions").wait().cpu()
    return [json.loads(bytes(row.tolist())) for row in gathered.view(group.size, BYTES)]


def _compare(everyone: list[dict[str, Any]], refusal: Exception | None, group: Group) -> None:
    refusals = [theirs.get("refusal") for theirs in everyone]
    if any(refusals):
        if refusal is not None and len(set(refusals)) == 1:
            raise refusal
        raise Disagreement("no rank computes: " + "; ".join(
            f"{group.called(rank)} refuses its shard with {text}" for rank, text in enumerate(refusals) if text))
    different = []
    for name in dict.fromkeys(name for theirs in everyone for name in theirs):
        values = [json.dumps(theirs.get(name)) for theirs in everyone]
        if name in ("tokens", "runs") or len(set(values)) == 1:
            continue
        holders: dict[str, list[str]] = {}
        for rank, value in enumerate(values):
            holders.setdefault(value, []).append(str(group.ranks[rank]))
        different.append(f"{name}: " + ", ".join(
            f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(ranks)}" for value, ranks in holders.items()))
    if different:
        raise Disagreement("no rank computes: the ranks disagree on " + "; ".join(different))
