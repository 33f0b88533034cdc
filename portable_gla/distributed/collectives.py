"""The collectives that this package makes: asynchronous, counted, and with an error that says who is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from portable_gla.distributed import roll_call
from portable_gla.distributed.groups import Group
from portable_gla.distributed.roll_call import Place


class Pending:
    """A collective under way; :meth:`wait` gives its result, on the device where the message was."""

    def __init__(self, group: Group, place: Place, start: Callable[[], Any], result: Tensor,
                 device: torch.device) -> None:
        self._group, self._place, self._result, self._device = group, place, result, device
        self._work: Any = None
        self._guarded(lambda: setattr(self, "_work", start()))

    def wait(self) -> Tensor:
        """Wait for the result.

        Raises
        ------
        RankFailure
            If a rank is dead, or did not come within the group's timeout.
        """
        if self._work is not None and not self._work.is_completed():
            token, arrived = roll_call.watch.enter(self._group, self._place), False
            try:
                self._guarded(self._work.wait)
                arrived = True
            finally:
                roll_call.watch.leave(token, arrived)
        elif self._work is not None:
            self._guarded(self._work.wait)  # raises what a finished collective ended with
        self._work = None
        return self._result if self._result.device == self._device else self._result.to(self._device)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except RuntimeError as error:
            raise roll_call.failure(self._group, self._place, error) from error


def _gather_single(received: Tensor, sent: Tensor, **options: Any) -> Any:
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before 2.13
    return gather(received, sent, **options)


def _place(group: Group, name: str) -> Place:
    group.collectives += 1
    return Place(name, group.collectives, group.ranks)


def all_gather(group: Group, message: Tensor, name: str) -> Pending:
    """Start gathering a contiguous message of one dimension, of equal length on every rank: [P · n] in rank order."""
    sent = message.to(group.wire(message))
    received = sent.new_empty(group.size * sent.shape[0])
    return Pending(group, _place(group, name), lambda: _gather_single(
        received, sent, group=group.process_group, async_op=True), received, message.device)


def all_reduce(group: Group, message: Tensor, name: str) -> Pending:
    """Start adding up a contiguous message over all ranks, in place where it lies on the wire's device."""
    summed = message.to(group.wire(message))
    return Pending(group, _place(group, name), lambda: dist.all_reduce(
        summed, group=group.process_group, async_op=True), summed, message.device)


def barrier(group: Group, name: str) -> None:
    """Wait until every rank is here; a rank that is not raises :class:`RankFailure` on the others."""
    all_reduce(group, torch.zeros(1, device=group.wire()), name).wait()
