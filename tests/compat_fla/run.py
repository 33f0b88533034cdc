"""Run flash-linear-attention's own tests of GLA and simple GLA, unchanged, on ``portable_gla.compat.fla``.

    python tests/compat_fla/run.py /path/to/flash-linear-attention [pytest arguments]
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = ("tests/ops/test_gla.py", "tests/ops/test_simple_gla.py")


def absent(checkout: Path | None) -> list[str]:
    """List the files that are not there, with the way out."""
    if checkout is None:
        return ["a checkout of https://github.com/fla-org/flash-linear-attention: give its path "
                "(make test-fla FLA_TESTS=/path)"]
    return [f"{checkout / name}: no such file; is this a checkout of flash-linear-attention, 0.5 or later?"
            for name in (*TESTS, "fla/ops/gla/__init__.py") if not (checkout / name).is_file()]


def unimportable(checkout: Path, environment: dict[str, str]) -> list[str]:
    """Say why the library (which needs triton and einops, some versions transformers) cannot be imported, if so."""
    tried = subprocess.run([sys.executable, "-W", "ignore", "-c", "import rebind"], cwd=checkout, env=environment,
                           capture_output=True, text=True, check=False)
    return [tried.stderr.strip().splitlines()[-1]] if tried.returncode else []


def main(arguments: list[str]) -> int:
    """Check, then hand over to pytest; return its exit status, or 2 where something is missing."""
    checkout = Path(arguments[0]).resolve() if arguments else None
    paths = [str(checkout), str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    missing = absent(checkout)
    if checkout is not None and not missing:
        missing = unimportable(checkout, environment)
    if checkout is None or missing:
        print("cannot run flash-linear-attention's tests; missing:", *missing, sep="\n  ", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pytest", "-p", "rebind", "-p", "no:cacheprovider", "-o", "log_cli=false", "-q",
               *arguments[1:], *TESTS]
    return subprocess.run(command, cwd=checkout, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
