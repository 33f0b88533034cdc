"""One launch at a time: all launches of a process share one builder."""

from __future__ import annotations

import threading

LOCK = threading.RLock()
