"""``python -m portable_gla.demo [--out FOLDER] [--seconds N] [--seed N] [--json]``."""

import argparse
import sys
from pathlib import Path

from portable_gla.demo import job


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m portable_gla.demo", description=job.__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the model")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    return job.run(arguments.out, arguments.seconds, arguments.json, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
