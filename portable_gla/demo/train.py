"""Training within a time limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from portable_gla.demo.evaluate import bits_per_byte
from portable_gla.demo.model import ByteModel
from portable_gla.demo.optimizer import Optimizer
from portable_gla.demo.text import Text

BATCH = 16
TOKENS = 128
_MARKS = 4  # evaluations on the way, the last at the end


@dataclass(frozen=True)
class Progress:
    """How far the training is, after one step or one evaluation."""

    seconds: float  # spent on training, evaluations left out
    steps: int
    training_bytes: int
    loss: float  # bits per byte on the last batch; NaN before the first
    heldout: float | None  # held-out bits per byte, where it was just evaluated


def train(model: ByteModel, text: Text, seconds: float, report: Callable[[Progress], None]) -> None:
    """Train for ``seconds``, calling ``report`` after every step, and with held-out figures at the start and at marks.

    Sixteen lanes read the text, each from its own place on, and carry their states from batch to batch: what is far
    back stays in reach, while gradients stop at a batch's beginning.
    """
    report(Progress(0.0, 0, 0, math.nan, bits_per_byte(model, text.heldout)))
    optimizer = Optimizer(model)
    starts = torch.arange(BATCH) * (text.training.shape[0] // BATCH)
    window = torch.arange(TOKENS + 1)
    state = model.init_state(BATCH)
    steps, marks, spent, loss = 0, 1, 0.0, torch.tensor(math.nan)
    while spent < seconds or not steps:
        begun = time.perf_counter()
        places = starts[:, None] + steps * TOKENS + window
        piece = text.training[places % text.training.shape[0]].long()
        logits, state = model(piece[:, :-1], state)
        state = state.detach()
        loss = functional.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(_rate(spent / seconds))
        steps += 1
        spent += time.perf_counter() - begun
        heldout = None
        if spent >= marks * seconds / _MARKS:
            marks = int(spent / seconds * _MARKS) + 1
            heldout = bits_per_byte(model, text.heldout)
        report(Progress(spent, steps, steps * BATCH * TOKENS, loss.item() / math.log(2), heldout))


def _rate(done: float) -> float:
    """Warm up over the first 2 %, then hold, then fall to nothing over the last 60 %."""
    return min(1.0, 0.05 + done / 0.02) * max(0.0, min(1.0, (1 - done) / 0.6))
