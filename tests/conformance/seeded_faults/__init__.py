"""The mistakes that the conformance suite must catch: each module has those of one part of a backend's work."""

from seeded_faults import decoding, gates, gradients, independence, outputs, refusals, states
from seeded_faults.copies import FAULTS, Copy, Fault

__all__ = ["FAULTS", "Copy", "Fault", "decoding", "gates", "gradients", "independence", "outputs", "refusals",
           "states"]
