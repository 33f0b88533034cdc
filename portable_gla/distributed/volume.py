"""How much a rank sends per layer (and receives as much): sharded linear attention against what softmax needs.

P ranks hold T/P tokens each; s is the size of a number, 2 bytes for 16-bit inputs and 4 for a state. Every function
returns a :class:`Volume` in bytes, for one layer and one rank, gathers and rings counted as P − 1 messages out, and as
many in.
"""

from __future__ import annotations

from dataclasses import dataclass

from portable_gla.problem import GATES


@dataclass(frozen=True)
class Volume:
    """Bytes that one rank sends in one layer."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def states(ranks: int, heads: int, key_dim: int, value_dim: int, *, batch: int = 1, gate: str = "channel",
           gate_heads: int | None = None, runs: int = 1, final_documents: int = 0, inner_documents: int = 0,
           itemsize: int = 4) -> Volume:
    """Count :func:`portable_gla.distributed.attention`, whatever T is.

    ::

        forward   (P − 1) · s · [runs · B · (H·K·V + D) + inner · H·K·V]
        backward  (P − 1) · s · [runs · B · H·K·V + N · H·K·V]

    D is the decay of a run: Hg·K numbers of a gate per channel, Hg of one per head, Hg once for the whole batch of a
    constant, none without a gate.

    Parameters
    ----------
    ranks, heads, key_dim, value_dim, batch
        P, H, K, V and B (1 for packed documents).
    gate, gate_heads
        The kind of gate, and Hg; by default H.
    runs
        The most runs that a rank holds: 1 in contiguous order, 2 in head-tail order.
    final_documents
        N (or B) where final states are wanted, else 0: their gradients travel backward.
    inner_documents
        Where final states of packed documents are wanted: the most documents of a rank that are not their run's last.
    itemsize
        4, or 8 for float64 inputs.

    Raises
    ------
    ValueError
        If the gate is no kind of gate.
    """
    if gate not in GATES:
        raise ValueError(f"gate: expected one of {GATES}, got {gate!r}")
    state = heads * key_dim * value_dim
    gate_heads = heads if gate_heads is None else gate_heads
    decay = {"channel": batch * gate_heads * key_dim, "head": batch * gate_heads, "constant": gate_heads,
             "none": 0}[gate]
    others = (ranks - 1) * itemsize
    return Volume(others * (runs * (batch * state + decay) + inner_documents * state),
                  others * (runs * batch * state + final_documents * state))


def ring_attention(ranks: int, tokens: int, k_heads: int, key_dim: int, v_heads: int, value_dim: int, *,
                   batch: int = 1, itemsize: int = 2) -> Volume:
    """Count ring attention (Liu et al., 2023): the blocks of k and v go round, backward with their gradients.

    ::

        forward   (P − 1) · s · B · T/P · (Hk·K + Hv·V)
        backward  (2·P − 1) · s · B · T/P · (Hk·K + Hv·V)

    Backward, k and v make P − 1 steps and their gradients P, the last one home; gradients in the inputs' dtype, which
    is the least (sums in float32 would double theirs).
    """
    block = itemsize * batch * tokens * (k_heads * key_dim + v_heads * value_dim)
    return Volume((ranks - 1) * block // ranks, (2 * ranks - 1) * block // ranks)


def all_to_all(ranks: int, tokens: int, q_heads: int, k_heads: int, key_dim: int, v_heads: int, value_dim: int, *,
               batch: int = 1, gate_numbers: int = 0, itemsize: int = 2) -> Volume:
    """Count the exchange of sequence shards for head shards and back (Jacobs et al., DeepSpeed-Ulysses, 2023).

    ::

        forward = backward   (P − 1)/P · s · B · T/P · (Hq·K + Hk·K + Hv·V + Ho·V + gate)

    q, k, v and the gate go out, o (of Ho = max(Hq, Hv) heads) comes back; backward their gradients the other way.
    ``gate_numbers`` is the gate's numbers per token, Hg·K for gated linear attention and 0 for softmax. P cannot pass
    the number of heads.
    """
    numbers = (q_heads + k_heads) * key_dim + (v_heads + max(q_heads, v_heads)) * value_dim + gate_numbers
    one_way = (ranks - 1) * itemsize * batch * tokens * numbers // ranks**2
    return Volume(one_way, one_way)


def row_parallel_projection(ranks: int, tokens: int, width: int, *, batch: int = 1, itemsize: int = 2) -> Volume:
    """Count :func:`portable_gla.distributed.row_parallel_projection` with its adjoint at the input, summed by rings.

    ::

        forward = backward   2 · (P − 1)/P · s · B · T · D
    """
    one_way = 2 * (ranks - 1) * itemsize * batch * tokens * width // ranks
    return Volume(one_way, one_way)
