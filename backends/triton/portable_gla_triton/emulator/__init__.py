"""Runs Triton kernels on CPU tensors, in the process in which others are compiled.

:func:`load` returns a package's kernels, emulated; :func:`counted` lists the bytes that each launch moves;
:func:`checking` turns checks off for large runs. Triton itself is never patched.
"""

from .errors import EmulationError, OutOfBoundsError, RaceError
from .loading import load
from .memory import checking
from .traffic import Traffic, counted

__all__ = ["EmulationError", "OutOfBoundsError", "RaceError", "Traffic", "checking", "counted", "load"]
