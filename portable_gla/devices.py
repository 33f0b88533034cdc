"""Which device a tensor is on, and what is known of it: the reader of ``devices.yaml``."""

from __future__ import annotations

import functools
import importlib.resources
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import yaml

from portable_gla.problem import Device


@dataclass(frozen=True)
class Figures:
    """A row of ``devices.yaml``.

    Bandwidth in GB/s (10⁹ bytes), rates in TFLOP/s, memory in GiB; ``source`` says where each comes from. ``match`` are
    the words, lower case, by which PyTorch's name of the device is recognised; one with ``*`` at its end is a prefix.
    """

    kind: str
    name: str
    type: str
    arch: str
    memory_gib: float
    bandwidth_gb_s: float
    matrix_tflop_s: float  # products of 16-bit operands, dense
    float32_tflop_s: float  # products of float32 operands at float32 accuracy, by the fastest unit
    vector_tflop_s: float  # float32 elementwise
    cores: int  # multiprocessors, compute units, or cores: what runs programs side by side
    host_gb_s: float  # to and from the host's memory, one way; 0: it computes in that memory
    link_gb_s: float  # to its peers, one way; 0: through the host
    match: tuple[str, ...]
    source: str


@functools.cache
def table() -> dict[str, Figures]:
    """Read every row, by kind."""
    text = importlib.resources.files("portable_gla").joinpath("devices.yaml").read_text(encoding="utf-8")
    return {kind: Figures(kind=kind, **{**row, "match": tuple(row.get("match", ()))})
            for kind, row in yaml.safe_load(text).items()}


def named(name: str) -> Device:
    """Return the device of a row: by its kind (``"v100"``, ``"910b"``), or by a name that matches (``"MI300X"``).

    A device of that kind on this machine is described as it is here, arch and all.

    Raises
    ------
    ValueError
        If the table has no such row.
    """
    kind = name.lower() if name.lower() in table() else _matching(table().values(), name) or _matching(
        table().values(), f"ascend{name}")
    if not kind:
        raise ValueError(f"device: expected one of {', '.join(table())}, got {name!r}")
    figures = table()[kind]
    here = next((found for found in map(of, present()) if found.kind == kind), None)
    return here or Device(figures.type, figures.kind, figures.arch, present=False)


@functools.cache
def of(device: torch.device) -> Device:
    """Describe a device of this machine."""
    arch, name = "", device.type
    if device.type == "cpu":
        arch = platform.machine()
    elif device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = properties.name
        arch = (properties.gcnArchName.split(":")[0] if torch.version.hip
                else f"sm_{properties.major}{properties.minor}")
    elif device.type not in ("meta",):
        get_name = getattr(getattr(torch, device.type, None), "get_device_name", None)
        name = arch = get_name(device) if get_name else device.type
    return Device(device.type, _kind(device.type, name), arch)


def cores(device: Device) -> int:
    """Return how many cores a device has; of one that the table does not know, a usual number of its kind."""
    row = table().get(device.kind)
    return row.cores if row else 128


def present() -> list[torch.device]:
    """List the devices of this machine that PyTorch can use, the CPU first."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        found += [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    return found


def _kind(device_type: str, name: str) -> str:
    """Find the row of a device of this machine; ``""`` where none matches."""
    if device_type == "cpu":
        return next(row.kind for row in table().values() if row.type == "cpu")
    rows = [row for row in table().values() if row.type == device_type]
    return _matching(rows, name)


def _matching(rows: Iterable[Figures], name: str) -> str:
    """Find the row with the longest match: "h100 pcie" before "h100"; whole words, so that "A1000" is no A100."""
    hits = [(len(text), row.kind) for row in rows for text in row.match if _pattern(text).search(name.lower())]
    return max(hits)[1] if hits else ""


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    end = "" if text.endswith("*") else r"(?![a-z0-9])"
    return re.compile(r"(?<![a-z0-9])" + re.escape(text.removesuffix("*")) + end)
