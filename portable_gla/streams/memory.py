"""How much host memory there is."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")


def available_host_bytes() -> int | None:
    """Return the bytes that this process may still take: the machine's, or its container's; None where unknown."""
    found = []
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                found.append(1024 * int(value.split()[0]))
    elif hasattr(os, "sysconf") and {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if _LIMIT.is_file() and _USED.is_file():
        limit = _LIMIT.read_text().strip()
        if limit.isdigit():  # else "max"
            found.append(max(0, int(limit) - int(_USED.read_text())))
    return min(found) if found else None
