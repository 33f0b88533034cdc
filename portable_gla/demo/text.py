"""Real text that every machine has: the sources of Python's standard library, as bytes."""

from __future__ import annotations

import random
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_SKIP = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__",
                   "encodings"})  # tables that are near copies of each other: holding one out would prove nothing
_EVERY = 20  # one file in so many is held out


@dataclass(frozen=True)
class Text:
    """Training bytes and held-out bytes, from different files: uint8 [n] each."""

    training: Tensor
    heldout: Tensor
    files: int
    heldout_files: int


def load(seed: int, heldout_bytes: int = 2**17, root: Path | None = None) -> Text:
    """Read the library's sources below ``root``, by default that of the running Python.

    Every twentieth file is held out, and of those, in an order that never changes, ``heldout_bytes`` bytes are kept.
    The training files are shuffled by ``seed``, so that neighbours in a batch differ.

    Raises
    ------
    FileNotFoundError
        If there are not enough sources (a Python without its library's sources).
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    files = sorted(path for path in root.rglob("*.py") if not _SKIP & set(path.relative_to(root).parts))
    heldout = files[_EVERY // 2::_EVERY]
    training = [path for index, path in enumerate(files) if index % _EVERY != _EVERY // 2]
    random.Random(seed).shuffle(training)
    random.Random(0).shuffle(heldout)
    kept = b"".join(path.read_bytes() for path in heldout)[:heldout_bytes]
    text = b"".join(path.read_bytes() for path in training)
    if len(kept) < heldout_bytes or len(text) < 4 * heldout_bytes:
        raise FileNotFoundError(f"too few Python sources in {root}: {len(text)} bytes to train on, {len(kept)} held "
                                f"out; {4 * heldout_bytes} and {heldout_bytes} are needed")
    return Text(_tensor(text), _tensor(kept), len(training), len(heldout))


def zlib_bits_per_byte(text: Tensor) -> float:
    """Return zlib's bits per byte at level 9 on uint8 [n]."""
    raw = text.numpy().tobytes()
    return 8 * len(zlib.compress(raw, 9)) / len(raw)


def _tensor(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)
