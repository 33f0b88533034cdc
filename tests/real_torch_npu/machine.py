"""A made-up machine: Python with the real torch_npu, and as much of CANN and of NPUs as a check wants."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_UNSET = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TORCH_DEVICE_BACKEND_AUTOLOAD", "ASCEND_HOME_PATH",
          "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH", "PORTABLE_GLA_ASCEND_SOC", "PORTABLE_GLA_STRICT")


def variables() -> dict[str, str]:
    """Return this process's environment, without what would change what torch_npu finds."""
    return {name: value for name, value in os.environ.items() if name not in _UNSET}


def announce(folder: Path) -> None:
    """Write what an installation of this checkout would: the backends are found by their entry points."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    home = folder / "portable_gla-0.dist-info"
    home.mkdir()
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n", encoding="utf-8")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (home / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Machine:
    """Runs Python without CANN (``npus`` None), or with the stubs of it in ``cann`` and a number of NPUs."""

    def __init__(self, python: Path, cann: Path, work: Path) -> None:
        self.python = python
        self.cann = cann
        self.paths = [str(path) for path in (HERE, work, ROOT, *sorted(ROOT.glob("backends/*/")))]
        announce(work)

    def ask(self, *arguments: str, npus: int | None, **others: str) -> subprocess.CompletedProcess[str]:
        """Run to the end, and return what was said."""
        return subprocess.run([str(self.python), *arguments], env=self._environment(npus, others), cwd=ROOT,
                              capture_output=True, text=True, timeout=600, check=False)

    def show(self, *arguments: str, npus: int) -> int:
        """Run with the output going where this program's goes; return the exit status."""
        return subprocess.run([str(self.python), *arguments], env=self._environment(npus, {}), cwd=ROOT,
                              check=False).returncode

    def _environment(self, npus: int | None, others: dict[str, str]) -> dict[str, str]:
        stubbed = {} if npus is None else {
            "LD_LIBRARY_PATH": str(self.cann / "lib64"), "ASCEND_HOME_PATH": str(self.cann),
            "ASCEND_OPP_PATH": str(self.cann / "opp"), "STUB_NPUS": str(npus)}
        # TASK_QUEUE_ENABLE=0: torch_npu copies in this thread, as the emulated operators run.
        return {**variables(), "PYTHONPATH": os.pathsep.join(self.paths), "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1", "TASK_QUEUE_ENABLE": "0", **stubbed, **others}
