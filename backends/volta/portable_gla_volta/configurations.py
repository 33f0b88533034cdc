"""The kernels of every call: how sizes are rounded up, who works on what, and what that takes of shared memory.

A table and no search: nothing is tuned while a user waits. Shared memory follows the constants of the sources.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch

from portable_gla_volta.kernel import Kernel

LARGEST = 256
"""K and V at most."""

CHUNK = 32
"""Tokens of a chunk of float16, of a chunk's gradients, and between kept states."""

_WIDTHS = (32, 64, 128, 256)  # to which K is rounded up
_VECTORS = 400  # bytes of a chunk's decays per head
_OCTETS = 272  # and of those within eight positions


class Sweep(NamedTuple):
    """A program of the float16 forward pass or of states: ``wide`` columns of V by all of K, shared by warps.

    ``whole``: the forward pass keeps the readers of all channels in shared memory, not of one tile at a time.
    """

    keys: int
    wide: int
    warps_v: int
    warps_k: int
    whole: bool = True

    @property
    def warps(self) -> int:
        """All of a program's warps."""
        return self.warps_v * self.warps_k

    @property
    def defines(self) -> tuple[tuple[str, int], ...]:
        """What the sources call these."""
        return ("KP", self.keys), ("BV", self.wide), ("WV", self.warps_v), ("WK", self.warps_k)


def padded(key_dim: int) -> int:
    """Return K as the kernels have it."""
    return next(width for width in _WIDTHS if key_dim <= width)


def sweep(target: str, key_dim: int, value_dim: int, channel: bool) -> Sweep:
    """Return the program that walks a segment of a call in float16."""
    keys = padded(key_dim)
    # Two programs a multiprocessor: half of a Turing's shared memory does not hold readers and keys of 256 channels;
    # and with gates per channel its registers do not hold a wide state and o while scores are made.
    whole = target != "sm_75" or keys < 256
    # As wide as V, with a state of 128 registers a thread at most: every tile of V makes the scores again.
    wide = 32 if value_dim <= 32 or (channel and not whole) else 64 if value_dim <= 64 or keys == 256 else 128
    if wide == 128 or (wide == 64 and keys == 256):  # 32 columns a warp: operands that are fetched serve two products
        return Sweep(keys, wide, wide // 32, 4 // (wide // 32), whole)
    warps = max(2 * _tile(keys) // 32, wide // 16)
    return Sweep(keys, wide, wide // 16, warps // (wide // 16), whole)


def _tile(keys: int) -> int:
    """Return the channels of K that a pair of operands in shared memory has."""
    return min(keys, 64)


def _decays(shape: Sweep) -> tuple[int, int]:
    """Return the bytes of a chunk's decays, and of those of a tile of channels."""
    tile = _tile(shape.keys)
    sides = 4 if 32 * shape.warps >= 4 * tile else 2
    return 8 * shape.keys, 8 * sides * tile


def forward(shape: Sweep, channel: bool) -> Kernel:
    """Return the forward pass in float16."""
    readers = shape.keys if shape.whole else _tile(shape.keys)
    shared = CHUNK * 2 * (readers + shape.keys + shape.wide + CHUNK)
    shared += sum(_decays(shape)) - 2 * shape.keys + _VECTORS + _OCTETS + 16 + 16 + 6 * _tile(shape.keys) + 48
    defines = (*shape.defines, ("CHANNEL", int(channel)), ("WHOLE", int(shape.whole)))
    return Kernel("forward", "forward.cu", defines, 32 * shape.warps, shared)


def states(shape: Sweep, channel: bool) -> Kernel:
    """Return the states in float16: summaries, and those that are kept."""
    whole, tile = _decays(shape)
    shared = CHUNK * shape.keys * 2 + CHUNK * shape.wide * 2 + whole + tile * (1 + (shape.keys > 64)) + _VECTORS + 32
    return Kernel("states", "states.cu", (*shape.defines, ("CHANNEL", int(channel))), 32 * shape.warps, shared)


def exact(keys: int, channel: bool, read: bool) -> Kernel:
    """Return the forward pass (``read``) or the states in float32."""
    rows = 8 * 4 * keys
    apart = 8 * 8 * 128 if read and keys < 256 else 0  # else the keys' place is as large
    shared = rows * (1 + read) + (rows if channel else 32) + 8 * 128 + apart + (4 * keys if read else 0)
    return Kernel("exact", "exact.cu", (("KP", keys), ("CHANNEL", int(channel)), ("READ", int(read))), 256, shared)


def gradients(keys: int, channel: bool, dtype: torch.dtype) -> Kernel:
    """Return the gradients of a chunk."""
    single = dtype == torch.float32
    size, wide = (4 if single else 2), _tile(keys)
    tile, result, part, kept = CHUNK * wide * size, CHUNK * wide * 4, CHUNK * 64, 64 * wide
    warps = wide // 16
    shared = max(2 * part + 2 * kept + tile, 2 * tile + kept, tile + result)
    shared += CHUNK * CHUNK * size + 4 * CHUNK + 16 * wide + _VECTORS + 16 + 64 + 4 * 32 * warps
    defines = (("KP", keys), ("KT", wide), ("CHANNEL", int(channel)), *((("FLOAT32", 1),) if single else ()))
    return Kernel("gradients", "gradients.cu", defines, 2 * wide, shared)


def gradient_width(key_dim: int) -> int:
    """Return the channels of K, or of V, that a program of the gradients has."""
    return _tile(padded(key_dim))


SCAN = Kernel("scan", "scan.cu", (), 256, 0)
FOLD = Kernel("fold", "fold.cu", (), 128, 512)


def decode(key_dim: int) -> Kernel:
    """Return the decoding step."""
    return Kernel("decode", "decode.cu", (("KP", padded(key_dim)),), 256, 1024)


@functools.cache
def kernels(target: str) -> tuple[Kernel, ...]:
    """Return every kernel that a target's calls may launch."""
    found = [SCAN, FOLD]
    for keys, channel in itertools.product(_WIDTHS, (True, False)):
        for value in (32, 64, 128):
            shape = sweep(target, keys, value, channel)
            found += [forward(shape, channel), states(shape, channel)]
        found += [exact(keys, channel, True), exact(keys, channel, False)]
        found += [gradients(keys, channel, dtype) for dtype in (torch.float16, torch.float32)]
        found.append(decode(keys))
    return tuple(dict.fromkeys(found))
