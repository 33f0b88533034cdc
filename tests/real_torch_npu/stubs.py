"""Libraries that stand in for CANN's: whatever torch_npu asks the loader for and no one else brings.

What is missing is read off torch_npu's own libraries, so there is no list to keep: the names of libraries that are not
there, and the symbols that none of the others defines. ``acl.c`` has the functions that have to do something; every
other one is made here, and returns 0, ACL's word for success.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("acl.c")
_HOLDS_ALL = "libascendcl.so"
_PARTS = ("runtime", "compiler", "opp")
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")


class Library(NamedTuple):
    """What a shared library asks for and brings: ``undefined`` are symbols without a version that must be found."""

    needed: frozenset[str]
    undefined: frozenset[str]
    defined: frozenset[str]


class Missing(NamedTuple):
    """What has to be made for a library to load."""

    libraries: tuple[str, ...]
    symbols: tuple[str, ...]


def parse(text: str) -> Library:
    """Read what ``readelf --wide --dynamic --dyn-syms`` prints of a library."""
    undefined, defined = set(), set()
    for line in text.splitlines():
        words = line.split()
        if len(words) < 8 or not words[0].rstrip(":").isdigit():
            continue
        _, _, _, _, bind, _, section, name = words[:8]
        if section != "UND":
            defined.add(name.partition("@")[0])
        elif bind == "GLOBAL" and "@" not in name:  # weak ones may stay away; those with a version are the system's
            undefined.add(name)
    return Library(frozenset(_NEEDED.findall(text)), frozenset(undefined), frozenset(defined))


def missing(first: str, libraries: Mapping[str, Library], present: Callable[[str], bool],
            in_process: Callable[[str], bool]) -> Missing:
    """Find what a library lacks, with all that it needs.

    ``libraries`` are the known ones by name; ``present`` says of another whether the system has it, and ``in_process``
    of a symbol whether the interpreter brings it along.
    """
    reached, left, absent = set(), [first], set()
    while left:
        name = left.pop()
        if name in libraries:
            if name not in reached:
                reached.add(name)
                left += libraries[name].needed
        elif not present(name):
            absent.add(name)
    defined = frozenset[str]().union(*(libraries[name].defined for name in reached))
    wanted = frozenset[str]().union(*(libraries[name].undefined for name in reached)) - defined
    return Missing(tuple(sorted(absent)), tuple(sorted(name for name in wanted if not in_process(name))))


def source(symbols: Iterable[str]) -> str:
    """Write functions that return 0, which those of ``acl.c`` take the place of."""
    lines = ["/* Made by stubs.py. */"]
    for name in symbols:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"no name of a C function: {name!r}")
        lines.append(f"__attribute__((weak)) long {name}(void) {{ return 0; }}")
    return "\n".join(lines) + "\n"


def of_torch_npu(packages: Path) -> Missing:
    """Find what the torch_npu in a ``site-packages`` lacks to be imported."""
    extension = next(packages.glob("torch_npu/_C.*.so"))
    files = [extension, *packages.glob("torch_npu/lib/*.so"), *packages.glob("torch/lib/*.so")]
    process = ctypes.CDLL(None)
    return missing(extension.name, {file.name: parse(_readelf(file)) for file in files}, _loads,
                   lambda name: hasattr(process, name))


def build(found: Missing, home: Path) -> None:
    """Make a folder as CANN's own: the libraries, compiled, and the empty parts that torch_npu looks for."""
    for part in ("lib64", *_PARTS):
        (home / part).mkdir(parents=True)
    folder = home / "lib64"
    made = folder / "made.c"
    made.write_text(source(found.symbols), encoding="utf-8")
    _compile(folder / _HOLDS_ALL, str(SOURCE), str(made))
    for name in set(found.libraries) - {_HOLDS_ALL}:
        # torch_npu looks some functions up in one library or another: each leads to the one that holds them all.
        _compile(folder / name, "-Wl,--no-as-needed", str(folder / _HOLDS_ALL), "-x", "c", "/dev/null")


def _compile(library: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{library.name}", "-o", str(library),
         *arguments], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{library.name} does not compile:\n{done.stderr[-4000:]}")


def _readelf(file: Path) -> str:
    return subprocess.run(["readelf", "--wide", "--dynamic", "--dyn-syms", str(file)], capture_output=True, text=True,
                          timeout=300, check=True).stdout


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
