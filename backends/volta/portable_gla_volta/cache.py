"""Files of machine code on disk: written whole or not at all, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_MAGIC = b"portable_gla image 1\n"
_ENDING = ".image"


def under(folder: Path) -> Path:
    """Return where a folder that PORTABLE_GLA_CACHE may name has this backend's code."""
    return folder / "volta"


def _usual() -> Path | None:
    if os.environ.get("PORTABLE_GLA_CACHE"):
        return under(Path(os.environ["PORTABLE_GLA_CACHE"]))
    try:
        return under(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portable_gla")
    except RuntimeError:  # a user without a home
        return None


FOLDER = _usual()
"""Where code is kept; None: nowhere."""


class Entry(NamedTuple):
    """What a file has: facts about the code, and the code."""

    facts: Mapping[str, Any]
    code: bytes


class Cache:
    """A folder of entries; a key is a folder of its own, so that one key may have code of several compilers."""

    def __init__(self, folder: Path | None = FOLDER) -> None:
        self.folder = folder

    def path(self, key: str, name: str) -> Path | None:
        """Return where an entry is, or would be."""
        return None if self.folder is None else self.folder / key / (name + _ENDING)

    def names(self, key: str) -> list[str]:
        """Return the names of a key's entries, unread."""
        if self.folder is None:
            return []
        return sorted(path.name.removesuffix(_ENDING) for path in (self.folder / key).glob(f"*{_ENDING}")
                      if not path.name.startswith("."))

    def get(self, key: str, name: str) -> Entry | None:
        """Read an entry; None where there is none, or it is damaged."""
        path = self.path(key, name)
        try:
            data = path.read_bytes() if path else b""
        except OSError:
            return None
        head, _, code = data.removeprefix(_MAGIC).partition(b"\n")
        try:
            facts = json.loads(head) if data.startswith(_MAGIC) else {}
        except ValueError:
            return None
        digest = facts.pop("sha256", None) if isinstance(facts, dict) else None
        return Entry(facts, code) if digest == _digest(key, name, facts, code) else None

    def put(self, key: str, name: str, code: bytes, **facts: Any) -> None:
        """Write an entry, over what stands there; a folder that cannot be written to is said once, and done without."""
        path = self.path(key, name)
        if path is None:
            return
        head = json.dumps({**facts, "sha256": _digest(key, name, facts, code)}).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Readers see the old file or the new one, never half of one, whoever else writes it.
            beside = path.with_name(f".{name}-{os.getpid()}-{secrets.token_hex(4)}.part")
            try:
                beside.write_bytes(_MAGIC + head + b"\n" + code)
                beside.replace(path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    beside.unlink()
        except OSError as error:
            warnings.warn(f"portable_gla cannot keep compiled kernels in {self.folder}: {error}; set "
                          "PORTABLE_GLA_CACHE to a folder that can be written to", stacklevel=2)

    def drop(self, key: str, name: str) -> None:
        """Remove an entry."""
        path = self.path(key, name)
        with contextlib.suppress(OSError):
            if path is not None:
                path.unlink()


def _digest(key: str, name: str, facts: Mapping[str, Any], code: bytes) -> str:
    """Hash all that an entry says and where it belongs, so that a file under another's name is no entry."""
    return hashlib.sha256(json.dumps([key, name, facts], sort_keys=True).encode() + b"\n" + code).hexdigest()
