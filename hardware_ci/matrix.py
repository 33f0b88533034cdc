"""The device matrix: the reader of ``matrix.yaml``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hardware_ci import documents, places
from portable_gla import devices
from portable_gla.problem import Device

PASSES = ("forward", "forward + backward")
DTYPES = ("bfloat16", "float16", "float32")
MEASURES = ("peer", "copy", "gate", "decode")


class MatrixError(ValueError):
    """``matrix.yaml`` does not say what it should; the message names the row and the field."""


@dataclass(frozen=True)
class Floor:
    """What a device must reach, for the timed rows that the selection (tag, tokens, bytes, passes) leaves.

    ``measure`` says what is held against ``each`` (every row) and ``mean`` (the geometric mean):

    - ``peer``: the peer's time over ours; at least.
    - ``copy``: the speed in compulsory bytes over that of a copy on the same machine; at least.
    - ``gate``: the time with per-channel gates over that with per-head gates; at least.
    - ``decode``: the time over what a copy takes to read and write the states; at most.
    """

    name: str
    measure: str
    each: float | None = None
    mean: float | None = None
    peer: str = ""
    tag: str = ""
    passes: tuple[str, ...] = PASSES
    tokens: tuple[int, int] = (0, 2**62)  # from, to
    least_bytes: float = 0  # compulsory bytes


@dataclass(frozen=True)
class Row:
    """A kind of device: how it is recognised, what must serve it, what was verified, what it must reach.

    ``kind`` is the row of ``portable_gla/devices.yaml`` that has its name and figures, and by which it is recognised;
    ``arch`` narrows that to some of its architectures. A row of a ``type`` instead stands for any device of PyTorch's
    type of that name, and is taken only where its backend is asked for.
    """

    key: str
    kind: str
    backend: str
    type: str = ""
    arch: tuple[str, ...] = ()
    name: str = ""
    emulated: str = ""  # what was verified without the device, and how; "": nothing
    dtype: str = "bfloat16"  # of the shapes that are timed, and of the small calls
    widest: int = 0  # K or V of the shapes that are timed, at most; 0: any
    environment: tuple[tuple[str, str], ...] = ()  # what must be set before a run starts
    arguments: str = ""  # of the job, after `hardware_ci run`
    runner: tuple[str, ...] = ()  # labels of a self-hosted runner; none: no job
    container: str = ""  # the image that the job runs in; "": on the runner itself
    devices: tuple[str, ...] = ()  # what of the runner's /dev and files the container is given
    prepare: tuple[str, ...] = ()  # commands before the package is installed, in its virtual environment
    floors: tuple[Floor, ...] = field(default=())

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name or devices.table()[self.kind].name

    @property
    def there(self) -> bool:
        """Whether the backend is in this checkout."""
        return (places.BACKENDS / self.backend).is_dir()


class Other(NamedTuple):
    """A row of the support table that no kind of device stands behind."""

    name: str
    backend: str
    verified: str


def others(path: Path = places.MATRIX) -> list[Other]:
    """Read those rows."""
    return [Other(**entry) for entry in documents.read(path).get("also") or ()]


@functools.cache
def rows(path: Path = places.MATRIX) -> tuple[Row, ...]:
    """Read every row.

    Raises
    ------
    MatrixError
        If a row lacks a field, has one that is unknown, or names a kind that ``devices.yaml`` does not have.
    """
    document = documents.read(path)
    targets = {name: tuple(_floor(f"floors {name}", entry) for entry in entries)
               for name, entries in (document.get("floors") or {}).items()}
    emulated, jobs = document.get("emulated") or {}, document.get("jobs") or {}
    return tuple(_row(key, {"emulated": emulated.get(entry.get("backend"), ""), **jobs.get(entry.get("backend"), {}),
                            **entry}, targets)
                 for key, entry in document["devices"].items())


def recognise(device: Device, backend: str | None = None, path: Path = places.MATRIX) -> Row | None:
    """Find the row of a device, on which ``backend`` is asked for; None: the matrix does not know it."""
    found = next((row for row in rows(path) if not row.type and row.kind == device.kind and (
        not row.arch or device.arch in row.arch)), None)
    if backend is not None and (found is None or found.backend != backend):
        found = next((row for row in rows(path) if row.type == device.type and row.backend == backend), found)
    return found


def _row(key: str, entry: dict[str, Any], targets: dict[str, tuple[Floor, ...]]) -> Row:
    entry = dict(entry)
    kind = "" if entry.get("type") else str(entry.pop("kind", key))
    if kind and kind not in devices.table():
        raise MatrixError(f"{key}: kind: expected a row of devices.yaml ({', '.join(devices.table())}), got {kind!r}")
    floors = entry.pop("floors", None)
    if floors is not None and floors not in targets:
        raise MatrixError(f"{key}: floors: expected one of {', '.join(targets)}, got {floors!r}")
    for name in ("arch", "runner", "devices", "prepare"):
        if name in entry:
            entry[name] = tuple(map(str, entry[name]))
    if "environment" in entry:
        entry["environment"] = tuple((str(name), str(value)) for name, value in entry["environment"].items())
    if entry.get("dtype", "bfloat16") not in DTYPES:
        raise MatrixError(f"{key}: dtype: expected one of {', '.join(DTYPES)}, got {entry['dtype']!r}")
    if kind == "" and not entry.get("name"):
        raise MatrixError(f"{key}: name: expected one, for no row of devices.yaml stands behind it")
    try:
        return Row(key=str(key), kind=kind, floors=targets[floors] if floors else (), **entry)
    except TypeError as error:
        raise MatrixError(f"{key}: {error}") from error


def _floor(where: str, entry: dict[str, Any]) -> Floor:
    entry = dict(entry)
    for name in ("passes", "tokens"):
        if name in entry:
            entry[name] = tuple(entry[name])
    try:
        floor = Floor(**entry)
    except TypeError as error:
        raise MatrixError(f"{where}: {error}") from error
    if floor.measure not in MEASURES:
        raise MatrixError(f"{where}: {floor.name}: measure: expected one of {', '.join(MEASURES)}, got "
                          f"{floor.measure!r}")
    if floor.each is None and floor.mean is None:
        raise MatrixError(f"{where}: {floor.name}: expected each or mean, got neither")
    if (floor.measure == "peer") != bool(floor.peer):
        raise MatrixError(f"{where}: {floor.name}: peer: expected with measure peer, and only there")
    if not set(floor.passes) <= set(PASSES):
        raise MatrixError(f"{where}: {floor.name}: passes: expected some of {PASSES}, got {floor.passes}")
    return floor
