"""The command ``portable-gla``: the command line where it can be imported, else what stops it and how to mend it."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace

from portable_gla_doctor.checks import examine
from portable_gla_doctor.facts import gather
from portable_gla_doctor.finding import Finding, Severity


def main() -> None:
    """Run the command line; where importing it fails, print a diagnosis instead of a traceback and exit with 1."""
    try:
        importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001 - whatever stops the import is what is to be diagnosed
        sys.exit(_diagnose("torch", error))
    try:
        run = importlib.import_module("portable_gla.cli").main
    except ImportError as error:
        sys.exit(_diagnose("portable_gla", error))
    run()


def _diagnose(package: str, error: Exception) -> int:
    message = f"{type(error).__name__}: {error}"
    facts = replace(gather(), torch_error=message if package == "torch" else None)
    findings = examine(facts)
    if package != "torch":
        findings.append(Finding("import-failed", Severity.ERROR, f"`import {package}` fails: {message}",
                                "pip install --force-reinstall portable-gla"))
    if "--json" in sys.argv:
        print(json.dumps({"ok": False, "torch_error": facts.torch_error, "packages": dict(facts.packages),
                          "findings": [finding._asdict() for finding in findings]}, indent=2))
        return 1
    print(f"portable-gla cannot start: `import {package}` fails.\n  {message}\n", file=sys.stderr)
    for finding in findings:
        print(f"{finding.severity.value} [{finding.code}] {finding.text}\n  -> {finding.remedy}", file=sys.stderr)
    return 1
