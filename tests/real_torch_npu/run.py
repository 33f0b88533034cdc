"""Run the Ascend backend on the real torch_npu, without CANN and without an NPU; see ``README.md`` beside this file.

    python tests/real_torch_npu/run.py [--seed N]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import claims
import stubs
from machine import HERE, ROOT, Machine, variables
from portable_gla_ascend.offline import store

PINS = ROOT / "requirements-dev.txt"
TORCH_NPU = "torch-npu==2.13.0"  # of the PyTorch that PINS names
PACKAGES = (TORCH_NPU, "torch", "numpy", "PyYAML", "rich", "typer")


def environment() -> Path:
    """Return the interpreter of an environment with torch_npu; install one where there is none."""
    folder = store.folder()
    home = folder / f"torch-npu-{store.digest(PACKAGES, PINS.read_text(encoding='utf-8'), sys.version)[:12]}"
    python = home / "bin/python"
    with store.locked(folder / "torch-npu.lock"):
        if not (home / "ready").exists():
            print(f"installing {TORCH_NPU} and its PyTorch in {home}", flush=True)
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                            "--constraint", str(PINS), *PACKAGES], check=True, env=variables())
            (home / "ready").touch()
    return python


def main() -> int:
    """Make what is missing, run, and return 0 where everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="repeat the numbers of an earlier run")
    seed = parser.parse_args().seed
    python = environment()
    lacking = stubs.of_torch_npu(next(python.parents[1].glob("lib/python3*/site-packages")))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        stubs.build(lacking, work / "cann")
        print(f"{TORCH_NPU}: made {len(lacking.symbols)} functions for {', '.join(lacking.libraries)}\n", flush=True)
        machine = Machine(python, work / "cann", work)
        wrong = list(claims.check(machine))
        print(flush=True)
        status = machine.show(str(HERE / "on_stub.py"), *([] if seed is None else ["--seed", str(seed)]), npus=1)
    print(*wrong, sep="\n")
    return 1 if wrong or status else 0


if __name__ == "__main__":
    sys.exit(main())
