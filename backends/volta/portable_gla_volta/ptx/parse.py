"""The grammar of PTX, as far as NVRTC writes it for one kernel: parameters, registers, labels, instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class PtxError(ValueError):
    """PTX that the translation does not know."""


class Instruction(NamedTuple):
    """``@%p1 add.s32 %r1, %r2, 3;``; operands in braces or brackets are one operand each."""

    line: int
    name: str
    parts: tuple[str, ...]  # what follows the name, dots removed
    operands: tuple[str, ...]
    guard: str = ""  # the predicate's register
    negated: bool = False
    used: int = -1  # of a load: a bit for each byte that anything depends on


class Label(NamedTuple):
    """A place to branch to."""

    name: str


class Registers(NamedTuple):
    """A declaration: of ``number`` registers name0, name1, ..., or of one (number 0)."""

    kind: str  # "b32", "pred", ...
    name: str
    number: int


class Local(NamedTuple):
    """An array of a thread's own, in bytes; the assembler may yet find registers for it."""

    name: str
    size: int


class Scope(NamedTuple):
    """A brace that opens or closes a scope of registers."""

    opens: bool


Statement = Instruction | Label | Registers | Local | Scope


class Kernel(NamedTuple):
    """One kernel: its one parameter, a structure of ``size`` bytes, its threads a block, and its statements."""

    name: str
    parameter: str
    size: int
    threads: int
    shared: tuple[str, ...]  # names of the dynamic shared memory
    body: tuple[Statement, ...]


_ENTRY = re.compile(
    r"\.visible \.entry (\w+)\(\s*\.param \.align \d+ \.b8 (\w+)\[(\d+)\]\s*\)\s*((?:\.\w+[ \d,]*\s*)*)\{")
_SHARED = re.compile(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\];")
# A constant of the source that NVRTC leaves behind is no operand of anything, or else one that is not known.
_BEFORE = re.compile(r"\.(version|target|address_size)\b.*|\.global \.align \d+ \.\w+ \w+(?: = [\w.]+)?;")
_STATEMENT = re.compile(r"\s*(?:(?P<label>\$?[\w$]+):(?!:)|(?P<scope>[{}])|(?P<text>[^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)")


def parse(text: str) -> Kernel:
    """Read a module that has one kernel.

    Raises
    ------
    PtxError
        If it has anything else.
    """
    text = re.sub(r"//[^\n]*", "", text)
    entry = _ENTRY.search(text)
    if entry is None:
        raise PtxError("expected a kernel with one parameter, a structure by value")
    before = text[:entry.start()]
    shared = tuple(_SHARED.findall(before))
    rest = _BEFORE.sub("", _SHARED.sub("", before)).strip()
    if rest:
        raise PtxError(f"before the kernel: {rest.splitlines()[0]}")
    threads = re.search(r"\.maxntid (\d+)(?:, 1, 1)?\s", entry[4])
    if threads is None:
        raise PtxError("expected a kernel with launch bounds")
    end = text.rindex("}")
    if text[end + 1:].strip():
        raise PtxError(f"after the kernel: {text[end + 1:].strip().splitlines()[0]}")
    return Kernel(entry[1], entry[2], int(entry[3]), int(threads[1]), shared, tuple(
        _statements(text, entry.end(), end)))


def _statements(text: str, position: int, end: int) -> Iterator[Statement]:
    line, counted, used = text.count("\n", 0, position) + 1, position, -1
    while found := _STATEMENT.match(text, position, end):
        position = found.end()
        start = found.start(found.lastgroup or 0)
        line, counted = line + text.count("\n", counted, start), start
        if found["label"]:
            yield Label(found["label"])
        elif found["scope"]:
            yield Scope(found["scope"] == "{")
        elif found["text"].strip():
            text_of = " ".join(found["text"].split())
            mask = re.fullmatch(r'\.pragma "used_bytes_mask (\d+)"', text_of)
            if mask:
                used = int(mask[1])
                continue
            for statement in _statement(text_of, line):
                yield statement._replace(used=used) if isinstance(statement, Instruction) else statement
                used = -1
    if text[position:end].strip():
        raise PtxError(f"line {line}: {text[position:end].strip().splitlines()[0]}")


def _statement(text: str, line: int) -> Iterator[Instruction | Registers | Local]:
    if text == '.pragma "nounroll"':
        return
    local = re.fullmatch(r"\.local \.align \d+ \.b8 (\w+)\[(\d+)\]", text)
    if local is not None:
        yield Local(local[1], int(local[2]))
        return
    if text.startswith(".reg"):
        declared = re.fullmatch(r"\.reg \.(\w+) (.+)", text)
        if declared is None:
            raise PtxError(f"line {line}: {text}")
        for name in declared[2].split(","):
            many = re.fullmatch(r"(.+)<(\d+)>", name.strip())
            yield Registers(declared[1], many[1] if many else name.strip(), int(many[2]) if many else 0)
        return
    found = re.fullmatch(r"(?:@(!?)(%\w+) )?([a-z]\w*)((?:\.[\w:]+)*)(?: (.*))?", text)
    if found is None:
        raise PtxError(f"line {line}: {text}")
    negated, guard, name, parts, rest = found.groups()
    operands = tuple(_split(rest or ""))
    yield Instruction(line, name, tuple(parts.split(".")[1:]), operands, guard or "", bool(negated))


def _split(text: str) -> Iterator[str]:
    """Split operands at the commas outside of braces and brackets."""
    depth, start = 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and not depth:
            yield text[start:index].strip()
            start = index + 1
    if text[start:].strip():
        yield text[start:].strip()
