"""How far a streamed computation has come, in a file that replaces its predecessor at once."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FORMAT = "portable_gla.stream 1"


class ResumeError(ValueError):
    """A progress file that does not belong to this call, or is no progress file; nothing was computed or written."""


class ProgressFile:
    """What a run needs to go on: how many steps are finished, the states then, and what the call was.

    The file is removed when the run ends, and so are the arrays that lie beside it (:meth:`array`).
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path, self._fingerprint = path, json.loads(json.dumps(fingerprint))
        self._beside: list[Path] = []
        self.found = self._read() if path.exists() else None
        """What an interrupted run left: (phase, finished steps, checksums, arrays); None at the start."""

    def _read(self) -> tuple[str, int, dict[str, int], dict[str, Tensor]]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                header = json.loads(bytes(file["header"]).decode())
                arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "header"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ResumeError(f"resume: {self.path} exists and is no progress file of a streamed computation "
                              f"({error}); it was left as it is") from error
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise ResumeError(f"resume: {self.path} exists and is no progress file of this version ({_FORMAT}); "
                              "it was left as it is")
        theirs = header["fingerprint"]
        differing = [f"{name} was {theirs.get(name)!r}, and is {self._fingerprint.get(name)!r}"
                     for name in sorted({*theirs, *self._fingerprint})
                     if theirs.get(name) != self._fingerprint.get(name)]
        if differing:
            raise ResumeError(f"resume: {self.path} is of another call: {'; '.join(differing)}. "
                              "Give the same inputs and options, or another path")
        return header["phase"], header["done"], header["checksums"], arrays

    def write(self, phase: str, done: int, checksums: Mapping[str, int], arrays: Mapping[str, Tensor]) -> None:
        """Replace the file: whoever is interrupted meanwhile leaves the old one."""
        header = json.dumps({"format": _FORMAT, "fingerprint": self._fingerprint, "phase": phase, "done": done,
                             "checksums": dict(checksums)})
        draft = self._draft
        with draft.open("wb") as file:
            values: dict[str, Any] = {name: value.numpy() for name, value in arrays.items()}
            np.savez(file, header=np.frombuffer(header.encode(), np.uint8), **values)
        draft.replace(self.path)

    @property
    def _draft(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    def array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor that lies in a file beside this one: zeros, or what an interrupted run left there."""
        path = self.path.with_name(f"{self.path.name}.{name}")
        count = int(np.prod(shape)) * dtype.itemsize
        if self.found is None and path.exists():
            raise ResumeError(f"resume: {path} exists without its progress file; it was left as it is")
        if self.found is not None and (not path.exists() or path.stat().st_size != count):
            raise ResumeError(f"resume: {path}, which belongs to {self.path}, is missing or has another size")
        self._beside.append(path)
        if not count:
            path.touch()
            return torch.empty(shape, dtype=dtype)
        return torch.from_file(str(path), shared=True, size=count // dtype.itemsize, dtype=dtype).view(shape)

    def remove(self) -> None:
        """Remove all files: the run has ended."""
        for path in (self.path, self._draft, *self._beside):
            path.unlink(missing_ok=True)


def checksum(x: Tensor) -> int:
    """Return a number that tells a segment of outputs from another."""
    return zlib.crc32(x.detach().contiguous().flatten().view(torch.uint8).numpy().data)
