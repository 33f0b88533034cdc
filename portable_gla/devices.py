"""Which device a tensor is on, and what is known of it: the reader of ``devices.yaml``."""

from __future__ import annotations

import functools
import importlib.resources
import platform
from dataclasses import dataclass

import torch
import yaml

from portable_gla.problem import Device


@dataclass(frozen=True)
class Figures:
    """A row of ``devices.yaml``.

    Bandwidth in GB/s (10⁹ bytes), matrix and vector rates in TFLOP/s, memory in GiB; ``source`` says where each comes
    from. ``match`` are substrings, lower case, of the name by which PyTorch reports the device.
    """

    kind: str
    name: str
    type: str
    arch: str
    memory_gib: float
    bandwidth_gb_s: float
    matrix_tflop_s: float  # 16-bit operands, dense, as the backend would use it; float32 on a CPU
    vector_tflop_s: float  # float32
    match: tuple[str, ...]
    source: str


@functools.cache
def table() -> dict[str, Figures]:
    """Read every row, by kind."""
    text = importlib.resources.files("portable_gla").joinpath("devices.yaml").read_text(encoding="utf-8")
    return {kind: Figures(kind=kind, **{**row, "match": tuple(row.get("match", ()))})
            for kind, row in yaml.safe_load(text).items()}


def named(name: str) -> Device:
    """Return the device of a row (``"v100"``, ``"h200"``, ``"910b"``), or of a type that is present (``"cpu"``).

    Raises
    ------
    ValueError
        If the table has no such row.
    """
    figures = table().get(name.lower())
    if figures is None:
        raise ValueError(f"device: expected one of {', '.join(table())}, got {name!r}")
    return Device(figures.type, figures.kind, figures.arch, present=_is_here(figures))


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
    return Device(device.type, _kind(device.type, name, arch), arch)


def present() -> list[torch.device]:
    """List the devices of this machine that PyTorch can use, the CPU first."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        found += [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    return found


def _kind(device_type: str, name: str, arch: str) -> str:
    rows = [row for row in table().values() if row.type == device_type]
    hits = [(len(text), row.kind) for row in rows for text in row.match if text in name.lower()]
    if hits:
        return max(hits)[1]  # the longest match: "h200" before "h20"
    return next((row.kind for row in rows if row.type == "cpu" or (arch and row.arch == arch and not row.match)), "")


def _is_here(figures: Figures) -> bool:
    if figures.type == "cpu":
        return True
    return any(of(device).kind == figures.kind for device in present())
