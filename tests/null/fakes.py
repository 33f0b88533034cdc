"""Backends that compute nothing, to watch the core with."""

import contextlib

import torch

from portable_gla import registry
from portable_gla.backend import Gradients
from portable_gla.problem import Schedule


class Fake:
    """Serves everything but what ``reasons`` say; keeps what it was called with."""

    plain = False

    def __init__(self, name, priority=50, reasons=()):
        self.name, self.priority, self.reasons, self.seen = name, priority, reasons, []

    def unavailable(self):
        return ()

    def reasons_against(self, problem):
        return self.reasons

    def schedule(self, problem):
        return Schedule({"chunk": 1}, 1, 1, 1, 1, 0, 0)

    def residual_spec(self, call):
        return (0,), torch.float32

    def forward(self, call, *, save):
        self.seen.append(("forward", call.pins))
        o = call.v.new_zeros(*call.q.shape[:2], call.heads, call.v.shape[3])
        final = call.q.new_zeros(call.state_shape, dtype=call.state_dtype) if call.output_final_state else None
        return o, final, call.q.new_zeros(0) if save else None

    def backward(self, call, residual, do, dfinal_state):
        self.seen.append(("backward", call.pins))
        inputs = (call.q, call.k, call.v, call.g, call.initial_state, call.bonus)
        return Gradients(*(None if x is None else torch.zeros_like(x) for x in inputs))

    def decode(self, call):
        self.seen.append(("decode", {}))
        call.out.zero_()


@contextlib.contextmanager
def registered(*backends):
    """Register backends for the length of a test."""
    for backend in backends:
        registry.register(backend)
    try:
        yield
    finally:
        for backend in backends:
            registry.unregister(backend.name)
