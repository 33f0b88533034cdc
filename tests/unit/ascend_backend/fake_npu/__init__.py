"""A fake ``npu`` device on host memory, and what torch_npu makes of ``torch.npu``: for programs of their own process.

PyTorch renames its private device once a process, for good: tests start programs that call :func:`install` first.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("device.cpp")
EXTENSION = "portable_gla_fake_npu"


def build() -> Path:
    """Compile the device; once for a source and a PyTorch, whoever asks."""
    text = SOURCE.read_bytes() + f"{torch.__version__} {torch.__file__} {sys.version}".encode()
    folder = Path(tempfile.gettempdir()) / f"{EXTENSION}-{os.getuid()}" / hashlib.sha256(text).hexdigest()[:16]
    library = folder / f"{EXTENSION}.so"
    if not library.exists():
        from torch.utils import cpp_extension  # slow to import

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            part = Path(work) / library.name
            includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
            command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(part),
                       f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
                       *(f"-I{path}" for path in includes), *(f"-L{path}" for path in cpp_extension.library_paths()),
                       "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise RuntimeError(f"the fake device does not compile:\n{done.stderr}")
            part.replace(library)
    return library


def install(name: str = "Ascend910B2") -> Any:
    """Give this process the device; return the module ``torch.npu``, with what this device counts."""
    spec = importlib.util.spec_from_file_location(EXTENSION, build())
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    torch.utils.rename_privateuse1_backend("npu")
    module = _module(name, extension)
    torch._register_device_module("npu", module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return module


def _module(name: str, extension: Any) -> Any:
    module: Any = types.ModuleType("torch.npu")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module.synchronize = lambda device=None: None
    module.empty_cache = lambda: None
    module.manual_seed_all = module.manual_seed = lambda seed: None
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    module.get_device_name = lambda device=None: name
    module.get_device_properties = lambda device=None: types.SimpleNamespace(name=name, total_memory=64 * 2**30)
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16, torch.float32]
    module.memory_allocated = module.max_memory_allocated = lambda device=None: 0
    module.get_device_capability = lambda device=None: None  # as torch_npu has it
    module.device = _device
    module.matmul = types.SimpleNamespace(allow_hf32=False)
    module.events = extension.events
    module.forget_events = extension.forget_events
    module.set_poisons = extension.set_poisons
    return module


@contextlib.contextmanager
def _device(device: Any) -> Iterator[None]:
    yield


def transfer_to_npu() -> None:
    """Do as ``torch_npu.contrib.transfer_to_npu``: what is said of cuda is said of the NPU."""
    npu: Any = torch.npu
    for name in dir(npu):
        if not name.startswith("_"):
            setattr(torch.cuda, name, getattr(npu, name))
    torch.Tensor.cuda = torch.Tensor.npu
    torch.nn.Module.cuda = torch.nn.Module.npu
