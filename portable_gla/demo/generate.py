"""Generation byte by byte, and the check that it computes what the parallel form computes."""

from __future__ import annotations

import torch
from torch import Tensor

from portable_gla.demo.model import ByteModel

STREAMING_BOUND = 1e-4
"""Most that a streaming logit may differ from the parallel form's, relative to the largest logit: float32 rounding
through every layer, with an order of magnitude to spare."""


@torch.no_grad()
def generate(model: ByteModel, prompt: bytes, length: int, seed: int, temperature: float = 0.7) -> bytes:
    """Continue ``prompt`` by ``length`` bytes: the prompt at once, then one decode step per byte."""
    generator = torch.Generator().manual_seed(seed)
    logits, state = model(torch.tensor([list(prompt)]), model.init_state(1))
    state, row = state.clone(), logits[0, -1]
    found = bytearray()
    for _ in range(length):
        byte = torch.multinomial(torch.softmax(row / temperature, 0), 1, generator=generator)
        found.append(int(byte))
        row = model.step(byte, state)[0]
    return bytes(found)


@torch.no_grad()
def streaming_error(model: ByteModel, text: Tensor) -> float:
    """Return the largest difference of streaming and parallel logits on bytes [B, T], relative to the largest logit."""
    parallel, _ = model(text, model.init_state(text.shape[0]))
    state = model.init_state(text.shape[0])
    streaming = torch.stack([model.step(text[:, t], state) for t in range(text.shape[1])], 1)
    return float((streaming - parallel).abs().max() / parallel.abs().max())
