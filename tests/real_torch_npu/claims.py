"""What the package says with the real torch_npu where CANN, the NPU or the chip is not there, and where it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from machine import Machine

_IMPORT = ("-c", "import torch")
_REASONS = ("-c", "import portable_gla; print(*(f'{reason.text} -> {reason.hint}' for info in portable_gla.backends() "
                  "if info.name == 'ascend' for reason in info.reasons))")
_DOCTOR = ("-m", "portable_gla_doctor", "doctor", "--json")
_EMULATED_DOCTOR = ("-m", "host_operators", *_DOCTOR[1:])
_NOT_LOADED = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


class Claim(NamedTuple):
    """A command on a machine, and the words that it has to say."""

    what: str
    npus: int | None  # None: no CANN
    command: tuple[str, ...]
    words: str
    variables: Mapping[str, str] = {}


CLAIMS = (
    Claim("no CANN: import torch", None, _IMPORT, "Failed to load the backend extension"),
    Claim("no CANN: doctor", None, _DOCTOR, "error [cann-missing]"),
    Claim("no CANN, torch-npu not loaded: doctor", None, _DOCTOR, "warning [cann-missing]", _NOT_LOADED),
    Claim("no CANN, torch-npu not loaded: backends()", None, _REASONS,
          "torch-npu is installed and is not loaded: it fails without CANN's libraries", _NOT_LOADED),
    Claim("CANN, no NPU: backends()", 0, _REASONS, "torch-npu is loaded and finds no NPU"),
    Claim("an NPU: doctor", 1, _EMULATED_DOCTOR, "npu:0 by ascend: right; warning [triton-ascend-missing]"),
    Claim("an NPU of an unknown chip: doctor", 1, _EMULATED_DOCTOR, "npu:0 by eager: right; warning [npu-unknown]",
          {"STUB_SOC": "Ascend310P3"}),
)


def check(machine: Machine) -> Iterator[str]:
    """Print what was said; yield what was not as it should be."""
    for claim in CLAIMS:
        done = machine.ask(*claim.command, npus=claim.npus, **claim.variables)
        said = done.stdout.strip()
        if claim.command is _IMPORT:
            said = (done.stderr.strip().splitlines() or [""])[-1]
        elif claim.command is not _REASONS:
            said = _doctor(done.stdout)
        print(f"{claim.what}\n    {said}", flush=True)
        if claim.words not in said:
            yield f"{claim.what}: expected {claim.words!r} in\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _doctor(text: str) -> str:
    """Tell what ``doctor --json`` found: its tiny runs on NPUs, and the findings about them."""
    try:
        found = json.loads(text)
    except ValueError:
        return "no JSON"
    runs = [f"{run['device']} by {run['backend']}: {'right' if run['ok'] else run['problem'] or 'wrong'}"
            for run in found.get("runs", ()) if run["device"] != "cpu"]
    return "; ".join([*runs, *(f"{finding['severity']} [{finding['code']}] {finding['text']}"
                               for finding in found["findings"] if "cpu" not in finding["code"])])
