"""What can be wrong with a machine, found without importing PyTorch: some faults stop ``import torch`` itself.

A package of its own because importing any part of ``portable_gla`` imports PyTorch. Standard library only.
"""

from portable_gla_doctor.checks import CHECKS, examine
from portable_gla_doctor.facts import DeviceFacts, Facts, gather
from portable_gla_doctor.finding import Finding, Severity

__all__ = ["CHECKS", "DeviceFacts", "Facts", "Finding", "Severity", "examine", "gather"]
