"""How the hardware CI writes YAML: keys in the order given, short lists on a line, numbers without noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

_WIDTH = 120


class _Dumper(yaml.SafeDumper):
    """Indents the entries of a list below its key, and repeats nothing by reference."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(value: Any) -> str:
    """Write a document as text."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=_WIDTH, allow_unicode=True)


def read(path: Path) -> Any:
    """Read a document; by libyaml where PyYAML has it, which takes a tenth of the time."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def write(path: Path, value: Any) -> None:
    """Write a document whole or not at all: a reader, or a run that is cut off, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(dump(value), encoding="utf-8")
    beside.replace(path)


def short(value: float) -> float:
    """Round to four significant digits, more than any clock is worth."""
    return float(f"{value:.4g}") if math.isfinite(value) else value
