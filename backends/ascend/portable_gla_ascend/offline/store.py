"""Results on disk, so that what lowers to the same text is planned once, by whichever process comes first."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def folder() -> Path:
    """Return where this backend keeps what is not a user's: under PORTABLE_GLA_CACHE, else in the user's cache."""
    if os.environ.get("PORTABLE_GLA_CACHE"):
        return Path(os.environ["PORTABLE_GLA_CACHE"]) / "ascend"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portable_gla" / "ascend"


def digest(*parts: Any) -> str:
    """Return a hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes see; it ends with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Store:
    """A folder of JSON documents by key."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the document of a key; make and keep it where there is none, unless it has ``"transient"``."""
        path = self.home / f"{key}.json.gz"
        found = self._read(path)
        if found is None:
            with locked(self.home / "locks" / key):
                found = self._read(path)
                if found is None:
                    found = make()
                    if not found.get("transient"):
                        self._write(path, found)
        return found

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        except (OSError, ValueError, EOFError):
            return None
        return found

    @staticmethod
    def _write(path: Path, document: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        part.write_bytes(gzip.compress(json.dumps(document).encode()))
        part.replace(path)
