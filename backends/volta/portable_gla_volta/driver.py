"""The NVIDIA driver through ctypes: loads machine code, launches kernels; and why it cannot here."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from portable_gla.errors import KernelError
from portable_gla.problem import Reason
from portable_gla_volta import cache, nvrtc, targets

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_WITHOUT_ASKING = 48 * 1024  # bytes of dynamic shared memory
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_PTX = 1  # CU_JIT_INPUT_PTX
_ERROR_LOG, _ERROR_LOG_SIZE = 5, 6  # CU_JIT_ERROR_LOG_BUFFER, ..._SIZE_BYTES
_LOG = 8192

BUILDS = ("pip install torch --index-url https://download.pytorch.org/whl/cu126 (the CUDA 12.6 builds, up to torch "
          "2.14, are the last with code for a V100; its last driver is R580)")


class Driver:
    """libcuda, initialised.

    Raises
    ------
    OSError
        If there is none.
    portable_gla.errors.KernelError
        If it does not start.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = library if library is not None else ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        number = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(number))
        self.cuda = number.value // 1000  # the major version of the CUDA that it has
        self.version = f"{_release() or 'unknown'} CUDA {self.cuda}.{number.value % 1000 // 10}"

    def load(self, code: bytes, entry: str, shared: int) -> ctypes.c_void_p:
        """Load code into the current context; return its kernel, allowed its dynamic shared memory.

        It may happen while a stream is captured into a CUDA graph: loading is no part of the graph.
        """
        self._have_context()
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        with self._while_capturing():
            self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code))
            self._call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(entry.encode()))
            if shared > _WITHOUT_ASKING:
                self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, ctypes.c_int(shared))
        return function

    def launch(self, function: ctypes.c_void_p, grid: int, threads: int, shared: int, stream: int,
               arguments: ctypes.Structure) -> None:
        """Queue a kernel of one parameter, a structure by value."""
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._call("cuLaunchKernel", function, ctypes.c_uint(grid), 1, 1, ctypes.c_uint(threads), 1, 1,
                   ctypes.c_uint(shared), ctypes.c_void_p(stream), parameters, None)

    def translate(self, ptx: bytes) -> bytes:
        """Compile PTX for the device of the current context."""
        self._have_context()
        log = ctypes.create_string_buffer(_LOG)
        names = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_SIZE)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG)
        link, code, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
        text = ptx + b"\0"
        with self._while_capturing():
            self._call("cuLinkCreate_v2", 2, names, values, ctypes.byref(link))
            try:
                self._call("cuLinkAddData_v2", link, _PTX, ctypes.c_char_p(text), ctypes.c_size_t(len(text)),
                           ctypes.c_char_p(b"kernel.ptx"), 0, None, None)
                self._call("cuLinkComplete", link, ctypes.byref(code), ctypes.byref(size))
                return ctypes.string_at(code, size.value)
            except KernelError as error:
                raise KernelError(f"{error}\n{log.value.decode(errors='replace')}") from error
            finally:
                self._library.cuLinkDestroy(link)

    def _have_context(self) -> None:
        """Make PyTorch's context current in this thread: autograd's may have called nothing of CUDA yet."""
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if not context.value:
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), torch.cuda.current_device())
            self._call("cuCtxSetCurrent", context)

    @contextlib.contextmanager
    def _while_capturing(self) -> Iterator[None]:
        """Allow what a capture in this thread would otherwise forbid, and put its mode back."""
        mode = ctypes.c_int(_RELAXED)
        self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise KernelError(f"{name}: {self._words(status)}")

    def _words(self, status: int) -> str:
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        self._library.cuGetErrorName(status, ctypes.byref(name))
        self._library.cuGetErrorString(status, ctypes.byref(text))
        words = [part.value.decode() for part in (name, text) if part.value]
        return ": ".join(words) or f"error {status}"


@functools.cache
def get() -> Driver:
    """Return this machine's driver.

    Raises
    ------
    portable_gla.errors.KernelError
        If there is none, or it does not start.
    """
    try:
        return Driver()
    except (OSError, AttributeError) as error:
        raise KernelError(f"the NVIDIA driver's libcuda.so.1 cannot be loaded: {error}") from error


def unavailable() -> Sequence[Reason]:
    """Say why no kernel can run on this machine: no device, or a build of PyTorch that cannot drive it."""
    # torch_npu's transfer_to_npu makes torch.cuda speak of NPUs; PyTorch's build then has no CUDA.
    if torch.version.cuda is None or not torch.cuda.is_available():
        return (Reason("device", "PyTorch sees no NVIDIA GPU here",
                       "testing.emulate('volta') runs the kernels on CPU tensors, slowly"),)
    here = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    names = tuple(f"sm_{major}{minor}" for major, minor in here)
    return against_build(names, torch.version.cuda or "", torch.cuda.get_arch_list()) or without_code(names)


def against_build(devices: Sequence[str], cuda: str, built: Sequence[str]) -> Sequence[Reason]:
    """Refuse a V100 under a build of PyTorch without code for it, unless another device here can serve.

    Parameters
    ----------
    devices
        The architectures of the devices that PyTorch sees, such as ``sm_70``.
    cuda
        PyTorch's CUDA, such as ``13.0``.
    built
        What PyTorch's build has code for.
    """
    if "sm_70" in devices and "sm_70" not in built and not any(
            targets.of(device) for device in devices if device != "sm_70"):
        why = f"CUDA {cuda} dropped it" if int(re.split(r"\D", cuda)[0] or 0) >= 13 else "it was left out"
        return (Reason("build", f"this build of PyTorch (CUDA {cuda}) has no code for a V100 (sm_70): {why}", BUILDS),)
    return ()


@functools.cache
def without_code(devices: Sequence[str]) -> Sequence[Reason]:
    """Refuse where kernels can neither be compiled nor have been, for any of the devices that they are for."""
    wanted = [target for target in map(targets.of, devices) if target is not None]
    missing = []
    for target in wanted:
        try:
            nvrtc.find(target)
        except KernelError as error:
            missing.append(str(error))
            if cache.FOLDER is not None and any(cache.FOLDER.glob(f"*-{target}-*")):
                return ()
        else:
            return ()
    return (Reason("compiler", f"the kernels are not built, and cannot be: {missing[0]}",
                   f"{nvrtc.HINT}, or bring a cache that `portable-gla build --backend volta` made on another machine "
                   "and name it in PORTABLE_GLA_CACHE"),) if missing else ()


def _release() -> str:
    """Return the driver's own version: CUDA's alone does not tell two drivers apart."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if re.fullmatch(r"\d+\.\d+(\.\d+)?", word)), "")
