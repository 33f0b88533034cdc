"""The hardware CI: what any device must show, measured there: ``python -m hardware_ci run``. See README.md."""
