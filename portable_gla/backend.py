"""What a backend is: the protocol that `backends/*` implement and the core calls.

A tensor's way: ``api`` validates and asks ``planning`` for a backend, ``ops`` builds a :class:`Call` and hands it to
that backend's ``forward``, keeps the one residual tensor, and hands both to the same backend's ``backward``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from portable_gla.problem import Problem, Reason, Schedule


@dataclass(slots=True)
class Call:
    """One validated call in layout BTHD; every tensor may be strided, and nothing is expanded to H heads.

    q [B, T, Hq, K], k [B, T, Hk, K], v [B, T, Hv, V]; g [B, T, Hg, K], [B, T, Hg], [Hg] or None; initial_state
    [N or 1, H, K, V] or None; bonus [H, K] or None; cu_seqlens [N + 1] or None. Output head h reads head
    ``h * Hx // H`` of tensor x. ``pins`` are the parts of the plan fixed by the user.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    initial_state: Tensor | None
    bonus: Tensor | None
    cu_seqlens: Tensor | None
    scale: float
    reverse: bool
    output_final_state: bool
    pins: dict[str, int]

    @property
    def heads(self) -> int:
        """H, the largest head count."""
        counts = [self.q.shape[2], self.k.shape[2], self.v.shape[2]]
        if self.g is not None:
            counts.append(self.g.shape[0] if self.g.dim() == 1 else self.g.shape[2])
        return max(counts)

    @property
    def sequences(self) -> int:
        """N: the number of packed sequences, or B."""
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_dtype(self) -> torch.dtype:
        """float64 for float64 inputs, else float32."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """[N, H, K, V]."""
        return self.sequences, self.heads, self.q.shape[3], self.v.shape[3]


@dataclass(slots=True)
class DecodeCall:
    """One validated decode step: q [B, T, Hq, K] with small T, k, v and g alike; state [P, H, K, V], updated in place.

    ``slots`` [B] picks each sequence's row of the pool, −1 skips it (its rows of o are zero); None means P = B.
    ``out`` [B, T, H, V] receives o.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    state: Tensor
    slots: Tensor | None
    bonus: Tensor | None
    scale: float
    out: Tensor


class Gradients(NamedTuple):
    """One gradient per input, in the input's own shape and dtype; None exactly where the input is None."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    initial_state: Tensor | None
    bonus: Tensor | None


@runtime_checkable
class Backend(Protocol):
    """An implementation of gated linear attention for some devices.

    Importing the module that defines it must import torch only: kernels and device libraries load on first use.
    """

    name: str
    priority: int  # the highest priority that serves a problem is chosen; negative: only by name
    plain: bool  # plain PyTorch operations: choosing it on its own raises a PortabilityWarning

    def unavailable(self) -> Sequence[Reason]:
        """Why it can serve nothing on this machine whatever the problem; empty where it can."""
        ...

    def reasons_against(self, problem: Problem) -> Sequence[Reason]:
        """Why it would not serve ``problem`` on ``problem.device``, pins included; empty: it would.

        The device may be absent (``problem.device.present`` is False): then the answer is what it would be there; on
        this machine, planning adds what ``unavailable`` says. T must not matter, so that a choice made while tracing
        with a dynamic T holds for every T.
        """
        ...

    def schedule(self, problem: Problem) -> Schedule:
        """How it would run a problem against which it has no reason."""
        ...

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of the one residual tensor; depends on shapes alone (they may be symbolic)."""
        ...

    def forward(self, call: Call, *, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return o [B, T, H, V] in q's dtype, final_state [N, H, K, V] (None unless asked for), the residual tensor.

        The residual is None unless ``save``. Nothing returned may alias an input.
        """
        ...

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """Return the gradients, from do [B, T, H, V] (any strides) and dfinal_state [N, H, K, V] or None.

        Written out: autograd inside an op's backward fails ``torch.library.opcheck``.
        """
        ...

    def decode(self, call: DecodeCall) -> None:
        """Write o to ``call.out`` and the new states into ``call.state``, without a host synchronisation."""
        ...


@runtime_checkable
class Emulatable(Protocol):
    """A backend whose kernels can also run in an emulator; see :func:`portable_gla.testing.emulate`."""

    def emulated(self) -> Backend:
        """Return a backend of the same name that serves CPU tensors by running the same kernel sources."""
        ...


@runtime_checkable
class RoundsOperands(Protocol):
    """A backend that says whether it multiplies 16-bit inputs on a matrix unit, decays rounded to their dtype.

    Without it, or where it is False, the conformance suite holds float32 results of 16-bit inputs to float32.
    """

    rounds_operands: bool


@runtime_checkable
class PartlyPlain(Protocol):
    """A backend that runs some problems by plain PyTorch operations, for want of what its kernels need."""

    def plain_for(self, problem: Problem) -> bool:
        """Whether it would run ``problem`` so: chosen on its own, that raises a PortabilityWarning; strict refuses."""
        ...


class Built(NamedTuple):
    """A kernel that was prebuilt."""

    name: str  # with its constants, for people
    path: Path | None  # where its machine code lies
    compiled: bool  # False: it was there already


@runtime_checkable
class Prebuilds(Protocol):
    """A backend that compiles kernels when they are first used, and can do so ahead of time: ``portable-gla build``."""

    prebuild_targets: tuple[str, ...]  # the architectures it compiles for

    def prebuild(self, target: str, cache: Path | None) -> tuple[int, Iterator[Built]]:
        """Return how many kernels a target has, and an iterator that compiles those which the cache lacks.

        ``cache`` is the folder that machines name in ``PORTABLE_GLA_CACHE``; None: this machine's own.

        Raises
        ------
        ValueError
            For a target that is not one of ``prebuild_targets``.
        portable_gla.errors.KernelError
            If no compiler is here, or a kernel does not compile.
        """
        ...
