"""Loads a package of Triton kernels a second time, to be emulated."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from .interpreted import mend
from .language import emulated
from .lock import LOCK


def load(package_dir: Path) -> Any:
    """Return the kernels of a package, each to be launched on CPU tensors with ``kernel[grid](...)``.

    Parameters
    ----------
    package_dir
        The folder of the package. It is imported once more under a private name; the functions that are compiled stay
        as they were.

    Returns
    -------
    A namespace with every public name of the package's ``__init__``; Triton functions in it are emulated. Where
    ``TRITON_INTERPRET=1`` was set before Triton was imported, they run in Triton's own interpreter instead.
    A launch takes CPU tensors (views too), numbers and tuples of them; ``num_warps`` and the like are ignored. Each
    function's ``jit`` is the Triton function itself, for compilation.

    Raises
    ------
    OutOfBoundsError
        From a launch: an address under a true mask lies outside the storage of every tensor passed.
    RaceError
        From a launch: a program stores to what another stores to or loads, or loads what another stored.
    EmulationError
        From a launch: what the emulator does not have (atomics, 8-bit floats, inline assembly), or Triton itself
        would refuse (a block as a condition, chained comparisons).
    """
    with LOCK:
        return _load(package_dir.resolve())


@functools.cache
def _load(folder: Path) -> types.SimpleNamespace:
    name = f"_emulated_{folder.name}_{abs(hash(str(folder))):x}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
            del sys.modules[loaded]
        raise
    if any(isinstance(value, InterpretedFunction) for value in vars(module).values()):
        mend()
    return types.SimpleNamespace(**{
        key: emulated(value) if isinstance(value, JITFunction) else value
        for key, value in vars(module).items() if not key.startswith("__") or key == "__all__"
    })
