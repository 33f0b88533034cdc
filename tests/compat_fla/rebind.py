"""A pytest plugin (``-p rebind``): flash-linear-attention's functions become ours before its tests import them."""

import importlib
import sys

import fla.utils
import pytest
import torch

from portable_gla.compat import fla as ours

for _name in ("gla", "simple_gla"):
    importlib.import_module(f"fla.ops.{_name}")

# Without a GPU the library still names "cuda" as the device of its tests, and synchronises it after each.
if not torch.cuda.is_available():
    fla.utils.device = "cpu"
    fla.utils.device_torch_lib = torch.cpu

_originals = {name: {id(getattr(module, name)) for module in list(sys.modules.values())
                     if getattr(module, "__name__", "").startswith("fla.ops.") and hasattr(module, name)}
              for name in ours.__all__}
for _module in list(sys.modules.values()):
    if getattr(_module, "__name__", "").partition(".")[0] == "fla":
        for _name, _ids in _originals.items():
            if id(getattr(_module, _name, None)) in _ids:
                setattr(_module, _name, getattr(ours, _name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail where a test module has got hold of an original: then it would not test us."""
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        for name in ours.__all__:
            found = getattr(module, name, None)
            if found is not None and found is not getattr(ours, name):
                raise pytest.UsageError(f"{module.__name__}.{name} was not rebound")


def pytest_report_header() -> str:
    """Say what runs."""
    return f"rebound to portable_gla.compat.fla: {', '.join(ours.__all__)}"
