"""What only this backend needs to know of a chip: how many cores, and how large the memories of a core are."""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass

import yaml


@dataclass(frozen=True)
class Soc:
    """A chip; sizes in KiB, per core: the unified buffer of a vector core, L0C and L1 of a cube core."""

    name: str  # the compiler's: "Ascend910B2"
    cube_cores: int
    vector_cores: int
    unified_kib: int
    l0c_kib: int
    l1_kib: int


def of(arch: str) -> Soc | None:
    """Find the chip of an architecture, as PyTorch or ``devices.yaml`` calls it, "Ascend" being optional."""
    name = arch.lower()
    return table().get(name if name.startswith("ascend") else f"ascend{name}")


@functools.cache
def table() -> dict[str, Soc]:
    """Read ``socs.yaml``: chips by their names in lower case."""
    text = importlib.resources.files("portable_gla_ascend").joinpath("socs.yaml").read_text(encoding="utf-8")
    found = {}
    for row in yaml.safe_load(text):
        for name in row.pop("names"):
            found[name.lower()] = Soc(name=name, **row)
    return found


def known() -> str:
    """Name the chips shortly, for people."""
    return "Ascend910B1 to B4, Ascend910_93xx, Ascend950"
