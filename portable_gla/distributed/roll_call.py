"""Who came to a collective, and who did not: asked of the store that all processes share, once one has failed.

A rank that waits for long says so in the store, from a thread of its own, since the waiting thread is blocked. So when
one rank's wait ends in an error, it can tell those that wait like itself from those that never came.
"""

from __future__ import annotations

import itertools
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
    """A collective of a group: its name, how many that group had started with it, and the group's global ranks."""

    name: str
    number: int
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} (collective {self.number})"


class _Watch:
    """Posts where this process waits, once a wait has lasted, and takes that back when it is over.

    Only its own thread talks to the store, and never under the lock: a store whose host is stopped does not answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = itertools.count()
        self._waits: dict[int, tuple[Group, Place, float]] = {}
        self._posted: dict[int, str] = {}  # keys, by wait
        self._over: set[int] = set()
        self._thread: threading.Thread | None = None

    def enter(self, group: Group, place: Place) -> int:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="portable_gla-roll-call", daemon=True)
                self._thread.start()
            token = next(self._tokens)
            self._waits[token] = group, place, time.monotonic()
            return token

    def leave(self, token: int, arrived: bool) -> None:
        """Forget a wait; where it ended in an error, what was posted stays for the others to read."""
        with self._lock:
            del self._waits[token]
            if arrived and token in self._posted:
                self._over.add(token)

    def _run(self) -> None:
        while True:
            time.sleep(PATIENCE / 2)
            now = time.monotonic()
            with self._lock:
                late = [(token, group, place) for token, (group, place, since) in self._waits.items()
                        if token not in self._posted and now - since > PATIENCE]
                over = [self._posted.pop(token) for token in self._over]
                self._over.clear()
                self._posted.update((token, _key(group.ranks[group.rank])) for token, group, _ in late)
            try:
                for key in over:
                    _store().delete_key(key)
                for _, group, place in late:
                    _post(group, place)
            except RuntimeError:
                return  # the store is gone: the wait itself will end in an error, and says so


watch = _Watch()


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _key(rank: int) -> str:
    return f"portable_gla/waits/{rank}"


def _post(group: Group, place: Place) -> None:
    _store().set(_key(group.ranks[group.rank]), json.dumps(place))


def failure(group: Group, place: Place, error: BaseException) -> RankFailure:
    """Find who is missing at a collective that ended in ``error``; takes ``GRACE`` seconds and little more at most."""
    seen: dict[int, Place] = {}
    trouble: list[str] = []

    def ask() -> None:
        try:
            _post(group, place)
            store = _store()
            deadline = time.monotonic() + GRACE
            while len(seen) < group.size and time.monotonic() < deadline:
                for rank in range(group.size):
                    key = _key(group.ranks[rank])
                    if store.check([key]):
                        name, number, ranks = json.loads(store.get(key))
                        seen[rank] = Place(name, number, tuple(ranks))
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
        lines.append(f"the store of the processes does not answer ({trouble[0]}): the process that hosts it is dead or "
                     "hangs; that is torchrun's agent, or global rank 0 without torchrun")
    if absent:
        names = ", ".join(group.called(rank) for rank in absent)
        lines.append(f"missing: {names}: dead, hanging, or busy elsewhere")
    for rank in elsewhere:
        other = "" if seen[rank].ranks == place.ranks else f" of another group, of ranks {list(seen[rank].ranks)},"
        lines.append(f"{group.called(rank)} waits in {seen[rank]}{other} instead")
    if not absent and not elsewhere and not trouble:
        lines.append("every rank came to it: the link between them failed")
    lines.append(f"cause: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return RankFailure("; ".join(lines), place.name, sorted(absent + elsewhere))
