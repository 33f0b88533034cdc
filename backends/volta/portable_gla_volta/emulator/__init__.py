"""Runs the CUDA C++ kernels on CPU tensors: the same sources, compiled by g++ and checked at every access.

:class:`EmulatorRunner` launches kernels; :func:`options` chooses what launches check and lists what they do;
:func:`missing` says what keeps it from running here.
"""

from .building import missing
from .counts import Launch, Site
from .errors import (
    EmulationError,
    GlobalConflictError,
    OutOfBoundsError,
    RaceError,
    SynchronizationError,
    UninitialisedError,
)
from .options import options
from .runner import EmulatorRunner

__all__ = ["EmulationError", "EmulatorRunner", "GlobalConflictError", "Launch", "OutOfBoundsError", "RaceError", "Site",
           "SynchronizationError", "UninitialisedError", "missing", "options"]
