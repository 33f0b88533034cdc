"""The compiled library: where it is, which instruction set it uses, whose threads; every call into it."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from portable_gla.problem import Reason

LIBRARY = Path(__file__).with_name("_native.so")
_ISA = os.environ.get("PORTABLE_GLA_CPU_ISA", "")  # "avx2" on a machine with AVX-512: for tests
_LARGE = 2**22
_ERRORS = {1: "cu_seqlens: expected 0 = c0 <= c1 <= ... <= cN = T", 2: "slots: expected -1 or a row of the pool"}


class Native:
    """The library, loaded and set up.

    Raises
    ------
    OSError
        If it is not there or cannot be loaded.
    LookupError
        If this machine lacks the instructions.
    """

    def __init__(self, path: Path = LIBRARY, isa: str = _ISA) -> None:
        library = ctypes.CDLL(str(path))
        library.gla_choose.restype = ctypes.c_char_p
        library.gla_choose.argtypes = [ctypes.c_char_p]
        chosen = library.gla_choose(isa.encode())
        if chosen is None:
            raise LookupError(isa)
        self.isa: str = chosen.decode()
        openmp = _openmp()
        library.gla_set_openmp.restype = None
        library.gla_set_openmp.argtypes = [ctypes.c_void_p]
        library.gla_set_openmp(openmp)
        self.threads = "PyTorch's OpenMP threads" if openmp else "POSIX threads"
        for name in ("gla_call_size", "gla_decode_call_size"):
            getattr(library, name).restype = ctypes.c_int64
        self.record_sizes: tuple[int, int] = library.gla_call_size(), library.gla_decode_call_size()
        for name in ("forward", "backward", "decode"):
            measure, compute = getattr(library, f"gla_{name}_workspace"), getattr(library, f"gla_{name}")
            measure.restype, measure.argtypes = ctypes.c_int64, [ctypes.c_char_p]
            compute.restype, compute.argtypes = ctypes.c_int, [ctypes.c_char_p, ctypes.c_void_p]
        library.gla_advise_huge_pages.restype = None
        library.gla_advise_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        library.gla_exponential.restype = None
        library.gla_exponential.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        self._library = library
        self.forward = functools.partial(self._run, library.gla_forward_workspace, library.gla_forward)
        self.backward = functools.partial(self._run, library.gla_backward_workspace, library.gla_backward)
        self.decode = functools.partial(self._run, library.gla_decode_workspace, library.gla_decode)

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Allocate, on huge pages where that is worth the call."""
        x = torch.empty(shape, dtype=dtype)
        if (size := x.nbytes) >= _LARGE:
            self._library.gla_advise_huge_pages(x.data_ptr(), size)
        return x

    def _run(self, measure: ctypes._FuncPointer, compute: ctypes._FuncPointer, record: bytes) -> None:
        workspace = self.empty((measure(record),))
        code = compute(record, workspace.data_ptr())
        if code:
            raise ValueError(_ERRORS[code])

    def workspace_bytes(self, pass_: str, record: bytes) -> int:
        """Return what ``forward``, ``backward`` or ``decode`` allocates for a record."""
        return 4 * int(getattr(self._library, f"gla_{pass_}_workspace")(record))

    def exponential(self, x: torch.Tensor) -> torch.Tensor:
        """Return exp of a float32 tensor [16 n], as the kernels compute it."""
        out = torch.empty_like(x)
        self._library.gla_exponential(out.data_ptr(), x.data_ptr(), x.numel())
        return out


@functools.cache
def library() -> Native:
    """Load the library once."""
    return Native()


@functools.cache
def unavailable() -> tuple[Reason, ...]:
    """Say why the library cannot be used on this machine; empty where it can."""
    if not LIBRARY.exists():
        return (Reason("native-missing", "this installation has no compiled library",
                       "install a wheel for this platform, or reinstall from source with gcc or clang on PATH"),)
    try:
        library()
    except OSError as error:
        return (Reason("native-load", f"the compiled library cannot be loaded: {error}",
                       "install the wheel for this platform, or reinstall from source"),)
    except LookupError as error:
        wanted = str(error.args[0]) or "AVX2, FMA and F16C"
        return (Reason("instruction-set", f"this {platform.machine()} processor lacks {wanted}",
                       "use the eager backend"),)
    return ()


def _openmp() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP runtime that PyTorch has loaded.

    GNU's, LLVM's and Intel's runtimes all export it. Sharing PyTorch's threads costs a few microseconds per call and
    keeps two sets of threads from competing for the cores.
    """
    names = ("libgomp", "libiomp5", "libomp")
    candidates = [path for path in (Path(torch.__file__).parent / "lib").glob("lib*") if path.name.startswith(names)]
    maps = Path("/proc/self/maps")
    if maps.exists():
        loaded = dict.fromkeys(line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/" in line)
        candidates = [path for path in map(Path, loaded) if path.name.startswith(names)]
        candidates.sort(key=lambda path: "torch" not in str(path))  # of several, PyTorch's own
    for path in candidates:
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
