"""``python -m portable_gla.distributed.measure``: time and bytes of a sharded call on this machine's processor.

One world of processes; in every round rank 0 first computes the whole sequence alone while the others wait, then all
compute their shards. The ratio of the two is taken within a round. Where other work keeps the machine busy, wall-clock
time says little about a process that has the machine alone; the ratio of processor time, of one process to the busiest
rank, then says what could be had. Every process has ``--threads`` threads. Bytes are those that go into the
collectives, beside the formulas.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

import portable_gla
from portable_gla.distributed import agree, attention, collectives, volume
from portable_gla.distributed.groups import resolve


def _inputs(tokens: int, arguments: argparse.Namespace) -> list[Tensor]:
    generator = torch.Generator().manual_seed(arguments.seed)

    def normal(size: int) -> Tensor:
        return torch.randn(1, tokens, arguments.heads, size, generator=generator)

    q, k, v = normal(arguments.key_dim), normal(arguments.key_dim), normal(arguments.value_dim)
    g = torch.nn.functional.logsigmoid(normal(arguments.key_dim)) / arguments.gate_normalizer
    return [x.requires_grad_() for x in (q, k, v, g)]


def _step(call: Callable[[], Tensor], do: Tensor, leaves: list[Tensor]) -> tuple[float, float]:
    """Run forward and backward; return the seconds by the clock, and those of this process's threads."""
    begun, busy = time.perf_counter(), time.process_time()
    call().backward(do)  # type: ignore[no-untyped-call]
    found = time.perf_counter() - begun, time.process_time() - busy
    for x in leaves:
        x.grad = None
    return found


def _counted(call: Callable[[], Tensor], do: Tensor) -> tuple[int, int]:
    """Return the bytes that a rank's gathers send, forward and backward."""
    genuine, bytes_sent = collectives._gather_single, [0]

    def counting(received: Tensor, sent: Tensor, **options: Any) -> Any:
        bytes_sent[-1] += sent.numel() * sent.itemsize * (dist.get_world_size() - 1)
        return genuine(received, sent, **options)

    collectives._gather_single = counting
    try:
        o = call()
        bytes_sent.append(0)
        o.backward(do)  # type: ignore[no-untyped-call]
    finally:
        collectives._gather_single = genuine
    return bytes_sent[0], bytes_sent[1]


def _work(rank: int, ranks: int, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    group = resolve(None)
    own = _inputs((rank + 1) * arguments.tokens // ranks - rank * arguments.tokens // ranks, arguments)
    do = torch.ones_like(own[2])
    sharding = agree(*own, overlap=arguments.overlap)

    def sharded() -> Tensor:
        found = attention(*own, overlap=arguments.overlap, sharding=sharding)
        assert isinstance(found, Tensor)
        return found

    def plain() -> Tensor:
        found = portable_gla.attention(*whole)  # type: ignore[arg-type]
        assert isinstance(found, Tensor)
        return found

    sent = _counted(sharded, do)
    whole = _inputs(arguments.tokens, arguments) if rank == 0 else []
    rounds = []
    for _ in range(arguments.rounds + 1):
        alone = _step(plain, torch.ones_like(whole[2]), whole) if rank == 0 else (0.0, 0.0)
        collectives.barrier(group, "the start of a round")
        slowest = torch.tensor(_step(sharded, do, own), dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        rounds.append((*alone, *slowest.tolist()))
    if rank == 0:
        _tell(arguments, ranks, rounds[1:], sent)  # the first warms up
    dist.destroy_process_group()


def _tell(arguments: argparse.Namespace, ranks: int, rounds: list[tuple[Any, ...]], sent: tuple[int, int]) -> None:
    shape = (arguments.heads, arguments.key_dim, arguments.heads, arguments.value_dim)
    ring = volume.ring_attention(ranks, arguments.tokens, *shape)
    exchange = volume.all_to_all(ranks, arguments.tokens, arguments.heads, *shape)
    formula = volume.states(ranks, arguments.heads, arguments.key_dim, arguments.value_dim)
    found = {
        "processes": ranks, "threads": arguments.threads, "tokens": arguments.tokens, "heads": arguments.heads,
        "key_dim": arguments.key_dim, "value_dim": arguments.value_dim, "rounds": len(rounds),
        "clock": _compared([row[0] for row in rounds], [row[2] for row in rounds]),
        "processor": _compared([row[1] for row in rounds], [row[3] for row in rounds]),
        "bytes_sent": {"forward": sent[0], "backward": sent[1]},
        "bytes_formula": {"forward": formula.forward, "backward": formula.backward},
        "bytes_ring_attention_16_bit": ring.total, "bytes_all_to_all_16_bit": exchange.total,
    }
    print(json.dumps(found, indent=2))


def _compared(one: list[float], slowest: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(one, slowest, strict=True)]
    return {"seconds_one": statistics.median(one), "seconds_slowest_rank": statistics.median(slowest),
            "ratio_median": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}


def main() -> None:
    """Read the arguments and start the processes."""
    parser = argparse.ArgumentParser(prog="python -m portable_gla.distributed.measure", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("processes", 2), ("threads", 1), ("tokens", 65536), ("heads", 4), ("key-dim", 64),
                          ("value-dim", 64), ("rounds", 7), ("overlap", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gate-normalizer", type=float, default=16.0, help="larger forgets more slowly")
    arguments = parser.parse_args()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    start_processes(_work, (arguments.processes, arguments), arguments.processes)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
