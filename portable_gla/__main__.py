"""``python -m portable_gla``: the command line."""

from portable_gla.cli import main

if __name__ == "__main__":
    main()
