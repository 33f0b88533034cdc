"""The exceptions and warnings that a user of the library can meet."""

from __future__ import annotations


class UnsupportedProblem(NotImplementedError):
    """A well-formed call that no backend (or not the one asked for) serves.

    The message lists every backend's reasons with a hint for each; ``plan`` holds the same as data.
    """

    def __init__(self, message: str, plan: object = None) -> None:
        super().__init__(message)
        self.plan = plan


class KernelError(RuntimeError):
    """A backend's kernel could not be built or launched, for a problem that the backend took.

    With ``backend=None`` another backend steps in, as if this one had refused; where one was named, or in the backward
    pass, it is raised.
    """


class PortabilityWarning(UserWarning):
    """Plain PyTorch operations serve a problem because nothing faster takes it; the message is the plan."""


class HostMemoryError(MemoryError):
    """Host memory, or the pool that the user fixed, is too small for what is to be kept there; nothing was started."""
