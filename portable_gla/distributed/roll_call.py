"""Who came to a collective, and who did not: asked of the group's store once one has failed.

A rank that waits for long says so in the store, from a thread of its own, since the waiting thread is blocked. So when
one rank's wait ends in an error, it can tell those that wait like itself from those that never came.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any, NamedTuple

import torch.distributed as dist

from portable_gla.distributed.errors import RankFailure
from portable_gla.distributed.groups import Group

PATIENCE = 1.0
"""Seconds of waiting after which a rank says in the store where it waits."""

GRACE = 5.0
"""Seconds that a rank whose collective failed gives the others to say where they are."""


class Place(NamedTuple):
    """A collective of a group: its name, and how many that group had started before it."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} (collective {self.number})"


class _Watch:
    """Posts where this process waits, once a wait has lasted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[int, tuple[Group, Place, float]] = {}
        self._thread: threading.Thread | None = None

    def enter(self, group: Group, place: Place) -> int:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="portable_gla-roll-call", daemon=True)
                self._thread.start()
            token = id(place)
            self._waits[token] = group, place, time.monotonic()
            return token

    def leave(self, token: int) -> None:
        with self._lock:
            self._waits.pop(token, None)

    def _run(self) -> None:
        posted: set[tuple[int, Place]] = set()
        while True:
            time.sleep(PATIENCE / 2)
            now = time.monotonic()
            with self._lock:
                late = [(token, group, place) for token, (group, place, since) in self._waits.items()
                        if now - since > PATIENCE]
            for token, group, place in late:
                if (token, place) in posted:
                    continue
                try:
                    _post(group, place)
                except RuntimeError:
                    return  # the store is gone: the wait itself will end in an error, and says so
                posted.add((token, place))


watch = _Watch()


def _store(group: Group) -> Any:
    return dist.distributed_c10d._get_process_group_store(group.process_group)


def _key(rank: int) -> str:
    return f"portable_gla/waits/{rank}"


def _post(group: Group, place: Place) -> None:
    _store(group).set(_key(group.rank), json.dumps(list(place)))


def failure(group: Group, place: Place, error: BaseException) -> RankFailure:
    """Find who is missing at a collective that ended in ``error``; takes ``GRACE`` seconds and little more at most."""
    seen: dict[int, Place] = {}
    trouble: list[str] = []

    def ask() -> None:
        try:
            _post(group, place)
            store = _store(group)
            deadline = time.monotonic() + GRACE
            while len(seen) < group.size and time.monotonic() < deadline:
                for rank in range(group.size):
                    if store.check([_key(rank)]):
                        at = Place(*json.loads(store.get(_key(rank))))
                        if at.number >= place.number:
                            seen[rank] = at
                time.sleep(0.05)
        except RuntimeError as lost:  # torch.distributed's errors, those of a store that is gone among them
            trouble.append(str(lost).splitlines()[0])

    asking = threading.Thread(target=ask, daemon=True)  # a store whose host is stopped does not answer at all
    asking.start()
    asking.join(GRACE + 2.0)
    if asking.is_alive():
        trouble.append("no answer")
    return _told(group, place, error, dict(seen), trouble)


def _told(group: Group, place: Place, error: BaseException, seen: dict[int, Place], trouble: list[str]) -> RankFailure:
    seen.setdefault(group.rank, place)
    absent = [rank for rank in range(group.size) if rank not in seen]
    elsewhere = [rank for rank, at in seen.items() if at != place]
    lines = [f"{place} of {group.size} ranks failed on {group.called(group.rank)}"]
    if trouble:
        # A host that is dead says nothing of the others; it is the one that is known to be missing.
        absent = [rank for rank in absent if group.ranks[rank] == 0]
        lines.append(f"the group's store does not answer ({trouble[0]}): the process that hosts it is dead or hangs; "
                     "that is torchrun's agent, or global rank 0 without torchrun")
    if absent:
        names = ", ".join(group.called(rank) for rank in absent)
        lines.append(f"missing: {names}: dead, hanging, or busy elsewhere")
    lines += [f"{group.called(rank)} waits in {seen[rank]} instead" for rank in elsewhere]
    if not absent and not elsewhere and not trouble:
        lines.append("every rank came to it: the link between them failed")
    lines.append(f"cause: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return RankFailure("; ".join(lines), place.name, sorted(absent + elsewhere))
