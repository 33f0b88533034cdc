"""A byte-level language model of gated linear attention layers that trains in a minute on two cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from portable_gla.nn import GatedLinearAttention

BYTES = 256
_PRIME = 2654435761  # Knuth's multiplicative hash: 2³² over the golden ratio


@dataclass(frozen=True)
class Config:
    """The sizes of a :class:`ByteModel`; all of it is stored beside its weights."""

    width: int = 96
    layers: int = 2
    heads: int = 2
    hidden: int = 192
    grams: int = 3  # contexts of 2, 3, … grams + 1 bytes have embeddings of their own
    rows: int = 16384  # of each of these embeddings


class State(NamedTuple):
    """Where a model stands in its texts: the last bytes [B, grams], and one state [B, H, K, V] per layer."""

    last: Tensor
    layers: tuple[Tensor, ...]

    def detach(self) -> State:
        """Cut the gradient's way into the past."""
        return State(self.last, tuple(state.detach() for state in self.layers))

    def clone(self) -> State:
        """Copy, so that steps in place leave this one as it is."""
        return State(self.last.clone(), tuple(state.clone() for state in self.layers))


class Block(nn.Module):
    """Attention, then two linear layers around a squared ReLU, each behind a norm and beside a residual path."""

    def __init__(self, config: Config, backend: str | None) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width)
        self.attention = GatedLinearAttention(config.width, num_heads=config.heads, backend=backend)
        self.norm = nn.RMSNorm(config.width)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        nn.init.zeros_(self.attention.o_proj.weight)  # every block starts as the identity
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run x [B, T, D] from a state [B, H, K, V]; return both afterwards."""
        y, after = self.attention(self.attention_norm(x), state=state, output_state=True)
        return self._rest(x + y), after

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """Run one token each, x [B, D], updating the state in place."""
        return self._rest(x + self.attention.step(self.attention_norm(x), state))

    def _rest(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.relu(self.up(self.norm(x))).square())
        return x + y


class ByteModel(nn.Module):
    """Predicts the next byte from all bytes before it.

    The input of a byte is its embedding and those of the 2, 3, … bytes that end with it, found by a hash: short
    contexts cost a look-up, and the attention is left with the long ones.

    Parameters
    ----------
    config
        The sizes.
    backend
        A backend's name for every attention call, or None.
    """

    def __init__(self, config: Config, backend: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(BYTES, config.width)
        self.grams = nn.ModuleList(nn.Embedding(config.rows, config.width) for _ in range(config.grams))
        self.blocks = nn.ModuleList(Block(config, backend) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, BYTES)
        nn.init.normal_(self.embedding.weight, std=0.5)
        for table in self.grams.parameters():
            nn.init.normal_(table, std=0.1)

    def init_state(self, batch: int) -> State:
        """Return the state before the first byte of ``batch`` texts."""
        last = torch.zeros(batch, self.config.grams, dtype=torch.long, device=self.head.weight.device)
        return State(last, tuple(block.attention.init_state(batch) for block in self.layers()))

    def forward(self, text: Tensor, state: State) -> tuple[Tensor, State]:
        """Run bytes [B, T] (any integer dtype) at once; return logits [B, T, 256] for the next ones, and the state."""
        x, last = self._embed(text.long(), state.last)
        after = []
        for block, layer in zip(self.layers(), state.layers, strict=True):
            x, layer = block(x, layer)
            after.append(layer)
        return self.head(self.norm(x)), State(last, tuple(after))

    @torch.no_grad()
    def step(self, text: Tensor, state: State) -> Tensor:
        """Run one byte each, [B], updating the state in place; return logits [B, 256]."""
        embedded, last = self._embed(text.long()[:, None], state.last)
        x = embedded[:, 0]
        state.last.copy_(last)
        for block, layer in zip(self.layers(), state.layers, strict=True):
            x = block.step(x, layer)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def layers(self) -> list[Block]:
        """List the blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def _embed(self, text: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        known = torch.cat([last, text], 1)
        tokens, grams = text.shape[1], self.config.grams
        x, context = self.embedding(text), text
        for back, table in enumerate(self.grams, 1):
            context = context * (BYTES + 1) + known[:, grams - back:grams - back + tokens] + 1
            x = x + table((context * _PRIME >> 11) % self.config.rows)
        return x, known[:, tokens:]
