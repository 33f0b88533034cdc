"""The compiled machine, and its structures."""

from __future__ import annotations

import ctypes
import functools

from . import building


class Launch(ctypes.Structure):
    """One launch, as machine.cpp has it."""

    _fields_ = [("entry", ctypes.c_void_p), ("arguments", ctypes.c_void_p), ("grid", ctypes.c_int),
                ("threads", ctypes.c_int), ("shared", ctypes.c_int), ("everything", ctypes.c_int),
                ("counting", ctypes.c_int), ("truncating", ctypes.c_int), ("order", ctypes.c_uint64),
                ("stretches", ctypes.c_int), ("begins", ctypes.POINTER(ctypes.c_uint64)),
                ("ends", ctypes.POINTER(ctypes.c_uint64))]


class Report(ctypes.Structure):
    """One fault, as reports.h has it."""

    _fields_ = [("kind", ctypes.c_int), ("block", ctypes.c_int), ("thread", ctypes.c_int), ("line", ctypes.c_int),
                ("file", ctypes.c_char_p), ("count", ctypes.c_int64), ("address", ctypes.c_uint64),
                ("text", ctypes.c_char * 512)]


class Site(ctypes.Structure):
    """One place that accesses memory, as counts.h has it."""

    _fields_ = [("file", ctypes.c_char_p), ("line", ctypes.c_int), ("space", ctypes.c_int), ("store", ctypes.c_int),
                ("bytes", ctypes.c_int), ("lanes", ctypes.c_int64), ("instructions", ctypes.c_int64),
                ("wavefronts", ctypes.c_int64), ("least", ctypes.c_int64), ("words", ctypes.c_int64),
                ("sectors", ctypes.c_int64), ("ragged", ctypes.c_int64)]


class Totals(ctypes.Structure):
    """Sums over a launch, as machine.cpp has them."""

    _fields_ = [(name, ctypes.c_int64) for name in (
        "barriers", "multiplications", "shuffles", "loaded", "stored", "loaded_once", "stored_once")]


@functools.cache
def load() -> ctypes.CDLL:
    """Return the machine: there is one in a process, and it runs one launch at a time."""
    library = ctypes.CDLL(str(building.machine()))
    library.emulator_machine_of_process.restype = ctypes.c_void_p
    library.emulator_run.argtypes = [ctypes.POINTER(Launch)]
    library.emulator_reports.restype = ctypes.POINTER(Report)
    library.emulator_sites.restype = ctypes.POINTER(Site)
    library.emulator_totals.restype = ctypes.POINTER(Totals)
    return library
