"""What ``bench`` times: the backends of this package, and the other implementations that are installed.

Each peer is one function that prepares its own inputs (its layout, contiguous) from the shared ones, so that no
conversion is timed, or raises :class:`Absent` with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import portable_gla
from portable_gla import devices


class Absent(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True)
class Shape:
    """What is timed, T aside."""

    batch: int
    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    gate: str
    device: torch.device
    seed: int

    def problem(self, tokens: int, training: bool) -> portable_gla.Problem:
        """Describe one timed call."""
        return portable_gla.Problem(
            tokens=tokens, heads=self.heads, key_dim=self.key_dim, value_dim=self.value_dim, batch=self.batch,
            dtype=self.dtype, gate=self.gate, training=training, device=devices.of(self.device))

    def inputs(self, tokens: int) -> Inputs:
        """Draw q, k, v, g and do, the same for every contestant."""
        generator = torch.Generator(self.device).manual_seed(self.seed)  # there: gigabytes drawn here would take long

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

        keys, values = (self.batch, tokens, self.heads, self.key_dim), (self.batch, tokens, self.heads, self.value_dim)
        gate = {"channel": keys, "head": keys[:3], "constant": (self.heads,), "none": None}[self.gate]
        # logsigmoid / 16 is what GLA's layers produce: decays between 0.9 and 1 for most tokens.
        g = None if gate is None else torch.nn.functional.logsigmoid(draw(*gate)) / 16
        return Inputs(draw(*keys), draw(*keys), draw(*values), g, draw(*values))


@dataclass(frozen=True)
class Inputs:
    """q, k [B, T, H, K], v, do [B, T, H, V], g of the shape's kind."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    do: Tensor


@dataclass(frozen=True)
class Work:
    """One contestant at one T, ready to be timed."""

    forward: Callable[[], object]
    forward_backward: Callable[[], object]


Contestant = Callable[[Shape, Inputs], Work]


def backend(name: str) -> Contestant:
    """Return the contestant that is a backend of this package."""

    def prepare(shape: Shape, inputs: Inputs) -> Work:
        def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> Tensor:
            return cast(Tensor, portable_gla.attention(q, k, v, g, backend=name))

        return _work(run, inputs)

    return prepare


def sdpa(shape: Shape, inputs: Inputs) -> Work:
    """PyTorch's softmax attention, causal: quadratic in T, and what most models use."""
    q, k, v, do = (x.transpose(1, 2).contiguous() for x in (inputs.q, inputs.k, inputs.v, inputs.do))

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    return _work(run, Inputs(q, k, v, None, do))


def sdpa_flash(shape: Shape, inputs: Inputs) -> Work:
    """PyTorch's softmax attention by its flash kernel alone: left to itself it may take another one."""
    if shape.key_dim != shape.value_dim:
        raise Absent(f"the flash kernel needs K = V, not {shape.key_dim} and {shape.value_dim}")
    free = sdpa(shape, inputs)

    def pinned(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return call()

        return run

    return Work(pinned(free.forward), pinned(free.forward_backward))


def flash_linear_attention(shape: Shape, inputs: Inputs) -> Work:
    """Time flash-linear-attention's chunked kernels on the same gate."""
    if shape.device.type != "cuda":
        raise Absent(f"flash-linear-attention's kernels do not run on {shape.device.type}")
    try:
        chunk_gla = importlib.import_module("fla.ops.gla").chunk_gla
        chunk_simple_gla = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    except ImportError as error:
        raise Absent(f"flash-linear-attention cannot be imported: {error}") from error
    if shape.gate == "none":
        raise Absent("flash-linear-attention's GLA kernels need a gate")

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> Tensor:
        scale = shape.key_dim**-0.5
        if shape.gate == "channel":
            o, _ = chunk_gla(q, k, v, g, scale=scale)
        elif shape.gate == "head":
            o, _ = chunk_simple_gla(q, k, v, g, scale=scale)
        else:
            o, _ = chunk_simple_gla(q, k, v, g_gamma=g, scale=scale)
        return cast(Tensor, o)

    return _work(run, inputs)


PEERS: dict[str, Contestant] = {"torch sdpa": sdpa, "flash-linear-attention": flash_linear_attention}
HARDWARE_PEERS: dict[str, Contestant] = {
    "flash-linear-attention": flash_linear_attention, "torch sdpa flash": sdpa_flash, "eager": backend("eager")}
"""Whom the hardware CI times beside the backend: the same everywhere, kernels by name."""


def _work(run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor], inputs: Inputs) -> Work:
    q, k, v = (x.detach().clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    g = inputs.g
    if g is not None:
        g = g.detach().clone().requires_grad_(g.dim() > 1)  # a constant gate is no parameter
    leaves = [x for x in (q, k, v, g) if x is not None and x.requires_grad]

    def forward() -> object:
        with torch.no_grad():
            return run(q, k, v, g)

    def forward_backward() -> object:
        return torch.autograd.grad(run(q, k, v, g), leaves, inputs.do)

    return Work(forward, forward_backward)
