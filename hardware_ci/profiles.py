"""What ran on the device, by its profiler: the kernels of a call by name, how often, and their time."""

from __future__ import annotations

import csv
import importlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hardware_ci import documents

_MOST = 30  # kernels that a file lists, the longest first


def record(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Profile one call, after one that warms up: its ``kernels``, or ``absent``: why there is no profile."""
    if device.type == "cpu":
        return {"absent": "a CPU backend's loops are no kernels"}
    call()
    torch.accelerator.synchronize(device)
    try:
        found = _ascend(call, device) if device.type == "npu" else _torch(call, device)
    except Exception as error:  # noqa: BLE001 - a profiler that fails is no fault of what it watches
        return {"absent": f"the profiler failed: {type(error).__name__}: {error}"}
    return {"kernels": found[:_MOST]} if found else {"absent": "the profiler has seen nothing on the device"}


def _torch(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    with torch.profiler.profile() as profile:
        call()
        torch.accelerator.synchronize(device)
    return _ranked((event.key, event.count, event.self_device_time_total) for event in profile.key_averages()
                   if event.self_device_time_total > 0)


def _ascend(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    profiler = importlib.import_module("torch_npu").profiler
    with tempfile.TemporaryDirectory() as folder:
        with profiler.profile(activities=[profiler.ProfilerActivity.NPU],
                              on_trace_ready=profiler.tensorboard_trace_handler(folder)):
            call()
            torch.accelerator.synchronize(device)
        return read_details(Path(folder).glob("**/kernel_details.csv"))


def read_details(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Sum up the files in which Ascend's profiler lists every kernel that ran."""
    totals: dict[str, tuple[int, float]] = {}
    for path in paths:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                name, time = row["Name"], _number(row)
                count, total = totals.get(name, (0, 0.0))
                totals[name] = count + 1, total + time
    return _ranked((name, count, total) for name, (count, total) in totals.items())


def _number(row: Mapping[str, str]) -> float:
    column = next(column for column in row if column.lower().startswith("duration"))
    return float(row[column].strip())


def _ranked(found: Iterable[tuple[str, int, float]]) -> list[dict[str, Any]]:
    return [{"name": name, "calls": count, "microseconds": documents.short(time)}
            for name, count, time in sorted(found, key=lambda each: -each[2])]
