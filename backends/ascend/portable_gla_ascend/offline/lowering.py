"""The other end of ``child.py``: a process in the compilers' environment that lowers one kernel after another."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("child.py")
SECONDS = 900.0  # for one kernel


class ChildDied(RuntimeError):
    """The process ended, or gave no answer in time; the message has its last words."""


class Child:
    """Starts its process at the first request, and again after it died."""

    def __init__(self, command: Sequence[str], path: Sequence[Path] = ()) -> None:
        self._command = list(command)
        self._variables: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TRITON_")},
            "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._rest = b""

    def ask(self, request: Mapping[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
        """Return the answer to a request.

        Raises
        ------
        ChildDied
            If there is none.
        """
        if self._process is None or self._process.poll() is not None:
            self._start(seconds)
        return self._exchange(request, seconds)

    def _exchange(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._dead(f"is gone ({error})") from error
        return self._line(seconds)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def _start(self, seconds: float) -> None:
        self.close()
        self._rest = b""
        self._said.seek(0)
        self._said.truncate()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=self._said, env=dict(self._variables))
        if "ready" not in self._line(seconds):
            raise self._dead("does not say that it is ready")

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise self._dead(f"gave no answer in {seconds:g} s")
            got = os.read(self._process.stdout.fileno(), 1 << 16)
            if not got:
                raise self._dead("ended")
            self._rest += got
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise self._dead(f"answered {line[:200]!r}") from error
        return found

    def _dead(self, what: str) -> ChildDied:
        self.close()
        self._said.seek(0)
        said = " ".join(self._said.read().decode(errors="replace").split())[-600:]
        return ChildDied(f"the process that lowers kernels {what}: {said}".rstrip(": "))
