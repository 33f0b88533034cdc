"""What tests of the Ascend backend's PyTorch operations share."""

from __future__ import annotations

import contextlib

from portable_gla.testing import emulate
from portable_gla.testing.running import Target


class OperationsTarget(Target):
    """The Ascend backend on CPU tensors, by its PyTorch operations."""

    def pinned(self, **pins: int) -> contextlib.AbstractContextManager[None]:
        """Enter what a call needs to reach them."""
        return emulate(self.backend, operations=1, **pins)


TARGET = OperationsTarget("ascend", emulated=True)
