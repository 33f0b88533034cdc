"""The call against the float64 oracle, on this machine, at a size that takes a moment."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from portable_gla.api import attention

BOUND = 2e-5
"""Most that a float32 result or gradient may differ from float64's, relative to its largest element."""


def errors(seed: int) -> dict[str, float]:
    """Return the error of o, the final state and every gradient, by name.

    The inputs hold strong gates and a reset; float64 inputs to the oracle are the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    g = functional.logsigmoid(4 * random(2, 200, 2, 24))
    g[0, 100] = -torch.inf
    inputs = {"q": random(2, 200, 2, 24), "k": random(2, 200, 2, 24), "v": random(2, 200, 2, 48), "g": g,
              "initial_state": random(2, 2, 24, 48)}
    weights = random(2, 200, 2, 48), random(2, 2, 24, 48)
    found = _results(inputs, weights, None)
    right = _results({name: x.double() for name, x in inputs.items()}, weights, "reference")
    return {name: float((x - right[name]).abs().max() / right[name].abs().max()) for name, x in found.items()}


def _results(inputs: dict[str, Tensor], weights: tuple[Tensor, Tensor], backend: str | None) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    o, state = attention(leaves["q"], leaves["k"], leaves["v"], leaves["g"], initial_state=leaves["initial_state"],
                         output_final_state=True, backend=backend)
    loss = (o * weights[0]).sum() + (state * weights[1]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {"o": o.detach(), "final_state": state.detach(), **named}
