"""Runs Triton kernels on CPU tensors, in the process in which others are compiled.

:func:`load` returns a package's kernels, emulated; :func:`counted` lists the bytes that each launch moves;
:func:`checking` turns checks off for large runs; :func:`together` says how many programs run at once. Triton itself is
never patched. Backends whose kernels are written in Triton share it.
"""

from .errors import EmulationError, OutOfBoundsError, RaceError
from .loading import load
from .memory import checking
from .programs import together
from .traffic import Traffic, counted
from .units import matrix_unit

__all__ = ["EmulationError", "OutOfBoundsError", "RaceError", "Traffic", "checking", "counted", "load",
           "matrix_unit", "together"]
