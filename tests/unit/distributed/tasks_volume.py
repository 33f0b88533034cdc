"""Count what goes into the collectives of one step."""

from __future__ import annotations

import contextlib

import tasks_sharded
import torch

from portable_gla.distributed import collectives, head_parallel_input, row_parallel_projection


@contextlib.contextmanager
def counted(size):
    """Yield the bytes sent per direction, by what PyTorch's own collectives are given."""
    sent = {"descriptions": 0, "forward": 0, "backward": 0}
    gather, reduce, names = collectives._gather_single, collectives.dist.all_reduce, []
    place = collectives._place

    def named(group, name):
        names.append(name)
        return place(group, name)

    def direction():
        last = names[-1]
        return ("descriptions" if "descriptions" in last else
                "backward" if "backward" in last or "gradient" in last else "forward")

    def gathered(received, message, **rest):
        sent[direction()] += message.numel() * message.itemsize * (size - 1)
        return gather(received, message, **rest)

    def reduced(message, **rest):
        sent[direction()] += 2 * message.numel() * message.itemsize * (size - 1) // size
        return reduce(message, **rest)

    collectives._gather_single, collectives.dist.all_reduce, collectives._place = gathered, reduced, named
    try:
        yield sent
    finally:
        collectives._gather_single, collectives.dist.all_reduce, collectives._place = gather, reduce, place


def run(rank, size, case, seed, lengths, order):
    with counted(size) as sent:
        tasks_sharded.run(rank, size, case, seed, lengths, order, None, {"backend": "reference"})
    assert sent["descriptions"] == 4096 * (size - 1)
    return sent


def project(rank, size, batch, tokens, width):
    x = torch.randn(batch, tokens, width, requires_grad=True)
    with counted(size) as sent:
        row_parallel_projection(head_parallel_input(x), torch.randn(width, width)).sum().backward()
    return sent
