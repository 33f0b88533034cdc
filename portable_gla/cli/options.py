"""Options that several commands share, and the messages for what is wrong with them."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import typer

from portable_gla import devices, registry


def _number(kind: type[int] | type[float], least: float) -> Callable[[object], Any]:
    def parse(value: object) -> int | float:
        try:
            number = kind(str(value))
        except ValueError:
            number = None
        if number is None or not least <= number < math.inf:
            what = "an integer" if kind is int else "a number"
            raise typer.BadParameter(f"expected {what} of {least:g} or more, got {str(value)!r}")
        return number

    return parse


def integer(least: int, text: str, *names: str, panel: str | None = None) -> Any:
    """Declare an option that takes an integer of ``least`` or more; ``text`` is its help."""
    return typer.Option(*names, parser=_number(int, least), metavar="INTEGER", help=text, rich_help_panel=panel)


def number(least: float, text: str, *names: str) -> Any:
    """Declare an option that takes a number of ``least`` or more; ``text`` is its help."""
    return typer.Option(*names, parser=_number(float, least), metavar="NUMBER", help=text)


Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout instead of text.")]
Seed = Annotated[int, integer(0, "Seed of the random inputs.", "--seed")]


class Gate(str, enum.Enum):
    """The kinds of gate, as on the command line."""

    CHANNEL = "channel"
    HEAD = "head"
    CONSTANT = "constant"
    NONE = "none"


class Dtype(str, enum.Enum):
    """The input dtypes."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def torch(self) -> torch.dtype:
        """The dtype itself."""
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32,
                "float64": torch.float64}[self.value]


def present_device(text: str | None, option: str = "--device") -> torch.device:
    """Read a device of this machine (``cpu``, ``cuda:1``, ``npu``); None is the first accelerator, else the CPU."""
    here = devices.present()
    if text is None:
        return here[-1] if len(here) == 1 else here[1]
    expected = f"expected one of {', '.join(str(device) for device in here)}, got {text!r}"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise typer.BadParameter(expected, param_hint=option) from error
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, 0)
    if torch.device(device.type) != torch.device("cpu") and device not in here:
        raise typer.BadParameter(f"{expected} (portable-gla doctor says what stands in the way)", param_hint=option)
    return torch.device("cpu") if device.type == "cpu" else device


def known_backends(names: Sequence[str], option: str = "--backend") -> list[str]:
    """Check backends' names."""
    for name in names:
        if name not in registry.names():
            raise typer.BadParameter(f"expected one of {', '.join(registry.names())}, got {name!r}", param_hint=option)
    return list(dict.fromkeys(names))


def integers(text: str, option: str) -> list[int]:
    """Read ``1024,4096,16384``: integers of 1 or more."""
    values = []
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise typer.BadParameter(f"expected integers of 1 or more with commas between, such as 1024,4096, got "
                                     f"{text!r}", param_hint=option)
        values.append(int(part))
    return sorted(set(values))


def pins(texts: Sequence[str], option: str = "--pin") -> dict[str, int]:
    """Read ``segments=2`` and the like."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name.isidentifier() or not value.isdecimal() or int(value) < 1:
            raise typer.BadParameter(f"expected NAME=INTEGER with an integer of 1 or more, such as segments=2, got "
                                     f"{text!r}", param_hint=option)
        found[name] = int(value)
    return found


def refuse(error: ValueError) -> typer.BadParameter:
    """Turn the library's "argument: expected ..., got ..." into the same about the command's option."""
    name, colon, rest = str(error).partition(": ")
    if colon and name.isidentifier():
        return typer.BadParameter(rest, param_hint=f"--{name.replace('_', '-')}")
    return typer.BadParameter(str(error))
