"""What these tests share."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TINY = ("--quick", "--cases", "tokens-1", "--only", "*-decode-8x*", "--device", "cpu", "--backend", "eager")
