"""``python -m hardware_ci``."""

from hardware_ci.cli import main

if __name__ == "__main__":  # worker processes import this module too
    main()
