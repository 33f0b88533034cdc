"""How a call is cut into tasks: tiles of V, segments of time, threads."""

from __future__ import annotations

import functools
import math

from portable_gla_cpu.marshal import Plan

CHUNK = 16
PANEL = 32
INTERVAL = 256  # tokens between saved states; also the shortest segment worth its extra pass
_ALONE = 2**19  # multiply-adds below which waking other threads costs more than it brings

# Times in units of one panel's work on one chunk (2 · 16 · 32 · K multiply-adds), as measured at K = 128.
_GATES = 1.5  # forward: loading, decays and scores, done anew for every tile of V
_ADVANCE = 0.8, 0.5  # the first pass over a segment: the gates' part, and per panel
_SUMMARY = 0.2  # backward: the first pass, of the whole


@functools.lru_cache(maxsize=1024)
def forward(sequences: int, heads: int, tokens: int, key_dim: int, value_dim: int, threads: int, segments: int) -> Plan:
    """Choose for the forward pass; ``tokens`` are all of a row, ``segments`` 0 or as pinned.

    Tiles of V leave every bit as it is; segments do not, and come in where tiles do not suffice.
    """
    work = sequences * heads
    threads = _threads(tokens * heads * key_dim * value_dim, threads)
    panels = -(-value_dim // PANEL)
    best, chosen = math.inf, (1, 1)
    for parts in [segments] if segments else _segments(tokens, sequences, work * panels, threads):
        for tiles in sorted({-(-panels // width) for width in range(1, panels + 1)}):
            width = -(-panels // tiles)
            time = math.ceil(work * tiles * parts / threads) / parts * (_GATES + width)
            if parts > 1:
                first = math.ceil(work * tiles * (parts - 1) / threads) / parts
                time += first * (_ADVANCE[0] + _ADVANCE[1] * width)
            if time < 0.97 * best:
                best, chosen = time, (parts, tiles)
    return Plan(chosen[0], chosen[1], INTERVAL, threads)


@functools.lru_cache(maxsize=1024)
def backward(sequences: int, groups: int, heads: int, tokens: int, key_dim: int, value_dim: int, threads: int,
             segments: int) -> Plan:
    """Choose for the backward pass, where ``groups`` closed groups of heads are independent."""
    work = sequences * groups
    threads = _threads(2 * tokens * heads * key_dim * value_dim, threads)
    best, chosen = math.inf, 1
    for parts in [segments] if segments else _segments(tokens, sequences, work, threads):
        time = math.ceil(work * parts / threads) / parts
        if parts > 1:
            time += math.ceil(sequences * heads * (parts - 1) / threads) / parts * _SUMMARY * groups / heads
        if time < 0.97 * best:
            best, chosen = time, parts
    return Plan(chosen, 1, INTERVAL, threads)


def decode(updates: int, threads: int) -> int:
    """Choose the threads for ``updates`` of one number of a state each."""
    return _threads(4 * updates, threads)


def _threads(multiply_adds: int, threads: int) -> int:
    return threads if multiply_adds > _ALONE else 1


def _segments(tokens: int, sequences: int, tasks: int, threads: int) -> range:
    """Offer numbers of segments: none where there are tasks enough."""
    if threads == 1 or tasks >= 4 * threads:
        return range(1, 2)
    most = min(tokens // max(1, sequences) // INTERVAL, 4 * threads)
    return range(1, max(1, most) + 1)
