"""Held-out bits per byte."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from portable_gla.demo.model import ByteModel

_LANES = 16  # texts read beside each other
_PIECE = 512  # bytes read at once


@torch.no_grad()
def bits_per_byte(model: ByteModel, text: Tensor) -> float:
    """Return the model's code length of uint8 [n], in bits per byte, every byte counted.

    The text is read in 16 lanes, each from an empty state, so the model sees less context than zlib does.
    """
    bits = 0.0
    lane = -(-text.shape[0] // _LANES)
    lanes = torch.zeros(_LANES * lane, dtype=torch.long)
    lanes[:text.shape[0]] = text
    counted = (torch.arange(_LANES * lane) < text.shape[0]).view(_LANES, lane)
    lanes = lanes.view(_LANES, lane)
    before = functional.pad(lanes, (1, 0))[:, :-1]  # byte t is predicted from those before it; the first from a zero
    state = model.init_state(_LANES)
    for start in range(0, lane, _PIECE):
        part = slice(start, start + _PIECE)
        logits, state = model(before[:, part], state)
        nats = functional.cross_entropy(logits.flatten(0, 1), lanes[:, part].flatten(), reduction="none")
        bits += float((nats * counted[:, part].flatten()).sum()) / math.log(2)
    return bits / text.shape[0]
