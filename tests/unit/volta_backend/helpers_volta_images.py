"""Small kernels of the tests' own, and stand-ins for the compiler and the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from portable_gla_volta import nvrtc
from portable_gla_volta.kernel import Kernel

from portable_gla.errors import KernelError

SOURCE = '''\
#include "own.cuh"
struct Arguments { float* x; int n; };
extern "C" __global__ void scaled(Arguments a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n) a.x[i] = twice(a.x[i]) * FACTOR;
}
'''
HEADER = "static __device__ float twice(float x) { return x + x; }\n"


class Arguments(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("n", ctypes.c_int))


def kernel(factor: int = 3, shared: int = 0) -> Kernel:
    return Kernel("scaled", "own.cu", (("FACTOR", factor),), 64, shared)


class FakeNvrtc:
    """A compiler of a version that returns its own name and the options as code, and counts."""

    def __init__(self, version: tuple[int, int] = (12, 6)) -> None:
        self.version = version
        self.compiled: list[tuple[str, ...]] = []

    def compile(self, name: str, text: str, headers: dict[str, str], options: tuple[str, ...]) -> nvrtc.Compiled:
        self.compiled.append(tuple(options))
        return nvrtc.Compiled(f"{self.version} {' '.join(options)}".encode(), "")

    def find(self, target: str) -> Any:
        return self


def no_compiler(target: str) -> Any:
    raise KernelError(f"no NVRTC that compiles for {target}")


class FakeCuda:
    """libcuda's functions, as ctypes would call them; ``refused`` code does not load."""

    def __init__(self, version: int = 12060, refused: Callable[[bytes], bool] = lambda code: False) -> None:
        self.version, self.refused = version, refused
        self.calls: list[str] = []
        self.launched: list[tuple[Any, ...]] = []
        self.loaded: list[bytes] = []
        self.attributes: list[tuple[int, int]] = []
        self.mode = 0  # of stream capture, in this thread
        self.modes_while_loading: list[int] = []
        self.context: int | None = 1
        self._kept: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            status = getattr(self, f"_{name}", lambda *_: 0)(*arguments)
            return int(status or 0)

        if not name.startswith("cu"):
            raise AttributeError(name)
        return call

    def _cuDriverGetVersion(self, number: Any) -> None:
        number._obj.value = self.version

    def _cuCtxGetCurrent(self, context: Any) -> None:
        context._obj.value = self.context

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        context._obj.value = 7

    def _cuCtxSetCurrent(self, context: Any) -> None:
        self.context = context.value

    def _cuThreadExchangeStreamCaptureMode(self, mode: Any) -> None:
        self.mode, mode._obj.value = mode._obj.value, self.mode

    def _cuModuleLoadData(self, module: Any, code: Any) -> int:
        self.modes_while_loading.append(self.mode)
        if self.refused(code.value):
            return 200
        self.loaded.append(code.value)
        module._obj.value = len(self.loaded)
        return 0

    def _cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> None:
        function._obj.value = 100 + module.value

    def _cuFuncSetAttribute(self, function: Any, attribute: int, value: Any) -> None:
        self.attributes.append((attribute, value.value))

    def _cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        grid, threads, shared, stream, parameters = rest[0], rest[3], rest[6], rest[7], rest[8]
        if grid.value == 0:
            return 1
        address = Arguments.from_address(parameters[0])
        self.launched.append((function.value, grid.value, threads.value, shared.value, stream.value, address.n))
        return 0

    def _cuLinkAddData_v2(self, link: Any, kind: int, text: Any, *rest: Any) -> int:
        self._ptx = text.value
        return 218 if b"unknown" in text.value else 0

    def _cuLinkComplete(self, link: Any, code: Any, size: Any) -> None:
        buffer = ctypes.create_string_buffer(b"machine code of " + self._ptx[:12])
        self._kept.append(buffer)
        code._obj.value, size._obj.value = ctypes.addressof(buffer), len(buffer.value)

    def _cuGetErrorName(self, status: int, name: Any) -> None:
        name._obj.value = {1: b"CUDA_ERROR_INVALID_VALUE", 200: b"CUDA_ERROR_INVALID_IMAGE",
                           218: b"CUDA_ERROR_INVALID_PTX"}[status]
