"""NVRTC, NVIDIA's compiler as a library: found beside PyTorch or in the system, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from portable_gla.errors import KernelError

HINT = "pip install nvidia-cuda-nvrtc-cu12 (the CUDA 12 builds of PyTorch bring it)"
_SYSTEM = ("/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")
_HOMES = ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX")


class Compiled(NamedTuple):
    """A cubin, or PTX without its final NUL, and what the compiler said."""

    code: bytes
    log: str


class Nvrtc:
    """One NVRTC library.

    Raises
    ------
    OSError
        If the file is not there or cannot be loaded.
    AttributeError
        If it is another library.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._library = library = ctypes.CDLL(self.path)
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(numbers)
        self.architectures = tuple(numbers)  # 70, 75, ...

    def serves(self, target: str) -> bool:
        """Tell whether it compiles for ``sm_70``, ``compute_70``, ..."""
        return int(target.rpartition("_")[2]) in self.architectures

    def compile(self, name: str, text: str, headers: Mapping[str, str], options: Sequence[str]) -> Compiled:
        """Compile a source: to a cubin for an ``sm_`` architecture in ``options``, to PTX for a ``compute_`` one.

        Raises
        ------
        portable_gla.errors.KernelError
            With the compiler's log and the options, if it does not compile.
        """
        library, program = self._library, ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers))
        texts = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers.values()))
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), name.encode(), len(headers), texts, names)
        if status:
            raise KernelError(f"NVRTC cannot start on {name}: {self._words(status)}")
        try:
            status = library.nvrtcCompileProgram(program, len(options), given)
            log = self._fetch(program, "ProgramLog").decode(errors="replace").strip("\0\n ")
            if status:
                raise KernelError(f"{name} does not compile: {self._words(status)}\n{log}\noptions: "
                                  f"{' '.join(options)}\ncompiler: NVRTC {self.version[0]}.{self.version[1]}")
            virtual = any(re.match(r"(--gpu-architecture|-arch)=compute_", option) for option in options)
            code = self._fetch(program, "PTX" if virtual else "CUBIN")
            return Compiled(code.rstrip(b"\0") if virtual else code, log)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _fetch(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise KernelError(f"{name}: {self._words(status)}")

    def _words(self, status: int) -> str:
        return str(self._library.nvrtcGetErrorString(status).decode())


@functools.cache
def find(target: str) -> Nvrtc:
    """Return the first NVRTC here that compiles for a target.

    Raises
    ------
    portable_gla.errors.KernelError
        If there is none; it says what was found instead, and how to get one.
    """
    found: list[str] = []
    for path in candidates():
        library = _open(path)
        if isinstance(library, str):
            found.append(library)
        elif library.serves(target):
            return library
        else:
            found.append(f"{path} is NVRTC {library.version[0]}.{library.version[1]}, without {target}")
    raise KernelError(f"no NVRTC that compiles for {target}: {'; '.join(found) or 'none was found'}")


@functools.cache
def _open(path: str) -> Nvrtc | str:
    try:
        return Nvrtc(path)
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error})"


def candidates() -> list[str]:
    """List the libraries to try: the wheels that PyTorch's builds bring, PyTorch itself, the system."""
    paths = [str(path) for folder in _folders() if folder.is_dir() for path in sorted(folder.glob("libnvrtc.so.*"))
             if re.fullmatch(r"libnvrtc\.so\.\d+", path.name)]
    paths += [str(path) for path in _bundled()]
    return list(dict.fromkeys([*paths, "libnvrtc.so.12", "libnvrtc.so.13"]))  # the last: where the loader looks


def _packages() -> Iterator[Path]:
    found = importlib.util.find_spec("nvidia")
    yield from map(Path, (found.submodule_search_locations if found else None) or ())
    yield Path(sysconfig.get_path("purelib")) / "nvidia"


def _torch() -> Path | None:
    found = importlib.util.find_spec("torch")
    return Path(found.origin).parent / "lib" if found and found.origin else None


def _folders() -> Iterator[Path]:
    for package in _packages():
        yield package / "cuda_nvrtc" / "lib"
        yield from sorted(package.glob("cu1[0-9]/lib"), reverse=True)
    for home in _HOMES:
        if os.environ.get(home):
            yield from (Path(os.environ[home]) / "lib64", Path(os.environ[home]) / "lib")
    yield from map(Path, _SYSTEM)


def _bundled() -> list[Path]:
    """List PyTorch's own copy, whose name has a hash in it."""
    folder = _torch()
    return sorted(folder.glob("libnvrtc-*.so*")) if folder and folder.is_dir() else []
