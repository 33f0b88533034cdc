"""Where the hardware CI's files lie in the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "hardware_ci"
MATRIX = HOME / "matrix.yaml"
RESULTS = HOME / "results"
PLOTS = HOME / "plots"
OFFLINE = HOME / "offline"
README = ROOT / "README.md"
WORKFLOW = ROOT / ".github" / "workflows" / "hardware.yml"
BACKENDS = ROOT / "backends"
