"""What a check reports."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Severity(str, enum.Enum):
    """How bad a finding is: an error makes ``doctor`` exit non-zero."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(NamedTuple):
    """One thing that is not as it should be, and how to mend it."""

    code: str  # stable, for programs: "cann-missing", "cuda13-volta", ...
    severity: Severity
    text: str
    remedy: str
