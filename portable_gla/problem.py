"""What is to be computed, and where, without a tensor: the vocabulary that planning and backends share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

GATES = ("channel", "head", "constant", "none")
"""g as [B, T, H, K] (GLA), [B, T, H] (Mamba-2), [H] (RetNet), or absent (plain linear attention)."""

MODES = ("attention", "decode")


class Reason(NamedTuple):
    """Why a backend does not serve a problem."""

    code: str  # stable, for programs: "device", "dtype", "load-error", ...
    text: str  # what stands in the way, for people
    hint: str = ""  # the way out


@dataclass(frozen=True)
class Device:
    """A device, present or not.

    ``type`` is PyTorch's (``cpu``, ``cuda``, ``npu``, ``mps``, ``xpu``); ``kind`` is the row of ``devices.yaml`` that
    has its figures, or ``""`` where none matches; ``arch`` is the compiler's name (``sm_90``, ``gfx942``, ``910B2``).
    """

    type: str = "cpu"
    kind: str = ""
    arch: str = ""
    present: bool = True

    def __str__(self) -> str:
        name = self.kind or self.type
        detail = f" ({self.arch})" if self.arch and self.arch != name else ""
        return f"{name}{detail}" + ("" if self.present else ", not on this machine")


@dataclass(frozen=True)
class Problem:
    """One call of :func:`portable_gla.attention` or :func:`portable_gla.decode_`, without its tensors.

    Parameters
    ----------
    tokens
        T, summed over the pack when ``packed``.
    heads, q_heads, k_heads, v_heads, gate_heads
        H, the largest head count, and each tensor's own, which divides it (0: H).
    key_dim, value_dim
        K and V.
    batch, sequences
        B, and N: B, or the number of packed sequences (-1: B).
    training
        Whether a backward pass will follow, so that residuals are kept.
    pins
        Parts of the plan that are fixed by :func:`portable_gla.override`, as sorted (name, value) pairs.
    """

    tokens: int
    heads: int
    key_dim: int
    value_dim: int
    batch: int = 1
    sequences: int = -1
    q_heads: int = 0
    k_heads: int = 0
    v_heads: int = 0
    gate_heads: int = 0
    dtype: torch.dtype = torch.float32
    gate: str = "channel"
    gate_dtype: torch.dtype | None = None
    packed: bool = False
    initial_state: bool = False
    final_state: bool = False
    reverse: bool = False
    bonus: bool = False
    training: bool = False
    mode: str = "attention"
    device: Device = Device("cpu", "cpu")
    pins: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ValueError(f"gate: expected one of {GATES}, got {self.gate!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode: expected one of {MODES}, got {self.mode!r}")
        for name in ("q_heads", "k_heads", "v_heads", "gate_heads"):
            if not getattr(self, name):
                object.__setattr__(self, name, self.heads)
        if self.sequences == -1:
            object.__setattr__(self, "sequences", self.batch)
        if self.gate_dtype is None:
            object.__setattr__(self, "gate_dtype", self.dtype)
        for name in ("tokens", "batch", "sequences"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("heads", "key_dim", "value_dim", "q_heads", "k_heads", "v_heads", "gate_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("q_heads", "k_heads", "v_heads", "gate_heads"):
            if self.heads % getattr(self, name):
                raise ValueError(f"{name}: expected a divisor of heads={self.heads}, got {getattr(self, name)}")

    @property
    def token_heads(self) -> int:
        """B · T · H, the unit in which bytes and times are quoted."""
        return self.batch * self.tokens * self.heads

    @property
    def state_dtype(self) -> torch.dtype:
        """float64 for float64 inputs, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def __str__(self) -> str:
        heads = {"q": self.q_heads, "k": self.k_heads, "v": self.v_heads, "g": self.gate_heads}
        odd = " ".join(f"H{name}={count}" for name, count in heads.items() if count != self.heads)
        flags = [name for name in ("packed", "initial_state", "final_state", "reverse", "bonus", "training")
                 if getattr(self, name)]
        return " ".join(filter(None, [
            self.mode, f"B={self.batch} T={self.tokens} H={self.heads}", odd,
            f"K={self.key_dim} V={self.value_dim}", str(self.dtype).removeprefix("torch."), f"gate={self.gate}",
            f"N={self.sequences}" if self.packed else "", *flags,
            *(f"{name}={value}" for name, value in self.pins)]))


@dataclass(frozen=True)
class Schedule:
    """How a backend would run a problem, and what it would move: figures by its own model, none measured.

    Bytes count each address once per launch's loads and once per its stores. ``bytes_backward`` is what the backward
    pass adds to the forward.
    """

    tiles: Mapping[str, int]  # what the backend chose: {"chunk": 16, "segments": 1, ...}
    launches_forward: int
    launches_backward: int
    bytes_forward: int
    bytes_backward: int
    residual_bytes: int  # what is kept between forward and backward, beside the inputs
    workspace_bytes: int  # the most that is allocated besides inputs, outputs and residuals
    notes: tuple[str, ...] = ()
