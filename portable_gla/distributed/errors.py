"""What can go wrong between ranks."""

from __future__ import annotations

from collections.abc import Sequence


class Disagreement(ValueError):
    """The ranks of a group do not describe one and the same call; every rank raises it with the same message."""


class RankFailure(RuntimeError):
    """A collective failed or timed out.

    ``collective`` names it, ``missing`` are the ranks of the group that never came to it (empty where all did, and the
    link between them is at fault).
    """

    def __init__(self, message: str, collective: str, missing: Sequence[int]) -> None:
        super().__init__(message)
        self.collective = collective
        self.missing = tuple(missing)
