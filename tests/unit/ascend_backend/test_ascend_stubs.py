"""The stubs on which ``make torch-npu`` loads the real torch_npu: what is missing of a library, and what is made."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "real_torch_npu"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"real_torch_npu_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stubs = load("stubs")

READ = """
Dynamic section at offset 0x2db8 contains 30 entries:
  Tag        Type                         Name/Value
 0x0000000000000001 (NEEDED)             Shared library: [libascendcl.so]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000e (SONAME)             Library soname: [libtorch_npu.so]
 0x000000000000000f (RPATH)              Library rpath: [$ORIGIN/lib/:$ORIGIN/]

Symbol table '.dynsym' contains 8 entries:
   Num:    Value          Size Type    Bind   Vis      Ndx Name
     0: 0000000000000000     0 NOTYPE  LOCAL  DEFAULT  UND
     1: 0000000000000000     0 NOTYPE  GLOBAL DEFAULT  UND PyExc_IndexError
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.14 (14)
     3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND aclrtMalloc
     4: 0000000000000000     0 FUNC    WEAK   DEFAULT  UND pthread_once
     5: 0000000000001139    24 FUNC    GLOBAL DEFAULT   12 brought
     6: 0000000000001159    24 FUNC    GLOBAL DEFAULT   12 versioned@@ABI_1
     7: 0000000000001179    24 FUNC    WEAK   DEFAULT   12 inline_one
"""


def library(needed: str = "", undefined: str = "", defined: str = ""):
    return stubs.Library(*(frozenset(words.split()) for words in (needed, undefined, defined)))


def test_a_library_is_read() -> None:
    assert stubs.parse(READ) == library("libascendcl.so libc.so.6", "PyExc_IndexError aclrtMalloc",
                                        "brought versioned inline_one")


def test_what_nobody_brings_is_missing() -> None:
    known = {"_C.so": library("libtorch_npu.so libc.so.6 libhccl.so", "both Py_None acl_one", "own"),
             "libtorch_npu.so": library("_C.so libascendcl.so libc10.so", "own acl_two torch", "both"),
             "libc10.so": library("", "", "torch"),
             "libunused.so": library("libatb.so", "atb", "acl_one")}
    assert stubs.missing("_C.so", known, lambda name: name == "libc.so.6", lambda name: name == "Py_None") == (
        ("libascendcl.so", "libhccl.so"), ("acl_one", "acl_two"))


def test_names_that_are_not_cs_are_refused() -> None:
    with pytest.raises(ValueError, match="no name of a C function: 'a-b'"):
        stubs.source(["a", "a-b"])


def test_what_is_made_answers(tmp_path) -> None:
    stubs.build(stubs.Missing(("libascendcl.so", "libhccl.so"), ("aclInit", "aclrtGetDeviceCount")), tmp_path / "cann")
    libraries = tmp_path / "cann" / "lib64"
    read = subprocess.run(["readelf", "--wide", "--dynamic", "--dyn-syms", str(libraries / "libhccl.so")],
                          capture_output=True, text=True, check=True).stdout
    assert "libascendcl.so" in stubs.parse(read).needed
    library = ctypes.CDLL(str(libraries / "libascendcl.so"))
    assert library.aclInit(None) == 0
    count = ctypes.c_uint32(77)
    assert library.aclrtGetDeviceCount(ctypes.byref(count)) == 0 and count.value == 0  # not the one that was made
    pointer = ctypes.c_void_p()
    assert library.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(1000), 0) == 0
    text = ctypes.create_string_buffer(b"through the device")
    back = ctypes.create_string_buffer(len(text))
    for to, source in ((pointer, text), (back, pointer)):
        assert library.aclrtMemcpy(to, ctypes.c_size_t(len(text)), source, ctypes.c_size_t(len(text)), 1) == 0
    assert back.value == text.value and pointer.value % 512 == 0
    assert library.aclrtFree(pointer) == 0
    assert all((tmp_path / "cann" / part).is_dir() for part in ("runtime", "compiler", "opp"))


def test_the_checkouts_backends_are_announced(tmp_path) -> None:
    load("machine").announce(tmp_path)
    found = [entry.name for one in importlib.metadata.distributions(path=[str(tmp_path)]) for entry in one.entry_points
             if entry.group == "portable_gla.backends"]
    assert {"ascend", "eager", "reference"} <= set(found)
