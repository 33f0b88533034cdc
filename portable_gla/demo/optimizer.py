"""The optimiser: Muon for the matrices of the blocks, Adam for the rest.

Source of Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from portable_gla.demo.model import ByteModel

_ADAM_RATE = 1e-2
_MUON_RATE = 0.02
_MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)  # pushes all singular values near 1 in five rounds (Jordan et al.)


class Optimizer:
    """Both optimisers over one model's parameters."""

    def __init__(self, model: ByteModel) -> None:
        self._matrices = [x for x in model.blocks.parameters() if x.dim() == 2 and min(x.shape) > 16]
        self._momenta = [torch.zeros_like(x) for x in self._matrices]
        chosen = {id(x) for x in self._matrices}
        self._adam = torch.optim.Adam([x for x in model.parameters() if id(x) not in chosen], betas=(0.9, 0.99),
                                      fused=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update from the gradients, with learning rates times ``factor``, and clear them."""
        for group in self._adam.param_groups:
            group["lr"] = _ADAM_RATE * factor
        self._adam.step()
        self._adam.zero_grad()
        for x, momentum in zip(self._matrices, self._momenta, strict=True):
            _muon(x, momentum, _MUON_RATE * factor)


def _muon(x: nn.Parameter, momentum: Tensor, rate: float) -> None:
    if x.grad is None:
        return
    momentum.lerp_(x.grad, 1 - _MOMENTUM)
    update = _orthogonal(x.grad.lerp(momentum, _MOMENTUM))
    x.add_(update, alpha=-rate * max(1.0, x.shape[0] / x.shape[1]) ** 0.5)
    x.grad = None


def _orthogonal(x: Tensor) -> Tensor:
    tall = x.shape[0] > x.shape[1]
    wide: Tensor = (x.mT if tall else x) / (torch.linalg.matrix_norm(x) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(5):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if tall else wide
