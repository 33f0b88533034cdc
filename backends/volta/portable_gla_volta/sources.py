"""The kernels' sources as they are shipped, each with what it includes."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from portable_gla_volta.kernel import Kernel

FOLDER = Path(__file__).with_name("csrc")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class Source(NamedTuple):
    """A source and the files it includes, however indirectly."""

    name: str
    text: str
    headers: Mapping[str, str]

    def digest(self) -> str:
        """Return a hash of every file."""
        found = hashlib.sha256()
        for name, text in ((self.name, self.text), *sorted(self.headers.items())):
            for part in (name, text):
                data = part.encode()
                found.update(len(data).to_bytes(8, "little") + data)
        return found.hexdigest()


def read(name: str, folder: Path | None = None) -> Source:
    """Read a source of ``csrc``, or of another folder."""
    return _read(name, folder or FOLDER)


@functools.cache
def _read(name: str, folder: Path) -> Source:
    text = (folder / name).read_text(encoding="utf-8")
    headers: dict[str, str] = {}
    wanted = _INCLUDE.findall(text)
    while wanted:
        header = wanted.pop()
        if header not in headers:
            headers[header] = (folder / header).read_text(encoding="utf-8")
            wanted += _INCLUDE.findall(headers[header])
    return Source(name, text, headers)


def options(kernel: Kernel, target: str) -> tuple[str, ...]:
    """Return what NVRTC is told beside the sources."""
    return (f"--gpu-architecture={target}", "--std=c++17",
            *(f"--define-macro={name}={value}" for name, value in kernel.defines))


def title(kernel: Kernel) -> str:
    """Name a kernel with its constants, for people."""
    constants = ", ".join(f"{name} {value}" for name, value in kernel.defines)
    return f"{kernel.entry} ({constants})" if constants else kernel.entry
