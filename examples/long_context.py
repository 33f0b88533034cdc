"""Train the demo's model on texts that are sharded over processes, and compare the losses with those of one process.

    torchrun --nproc-per-node 2 examples/long_context.py --tokens 65536
    python examples/long_context.py --processes 2            # without torchrun: starts its processes itself

Each process reads its part of the same text. What it needs of the others is one state per layer, whatever the length.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from portable_gla import distributed
from portable_gla.demo import checkpoint, text
from portable_gla.demo.model import ByteModel, Config, State
from portable_gla.demo.optimizer import Optimizer


class ShardedAttention:
    """The layers' call over all ranks, which agree on its shapes once."""

    def __init__(self) -> None:
        self._sharding: distributed.Sharding | None = None

    def __call__(self, *tensors: Tensor, **options: object) -> Tensor | tuple[Tensor, Tensor]:
        """Call :func:`portable_gla.distributed.attention`."""
        if self._sharding is None:
            self._sharding = distributed.agree(*tensors, **options)
        return distributed.attention(*tensors, sharding=self._sharding, **options)


def build(seed: int, dtype: torch.dtype, config: Config = Config()) -> ByteModel:  # noqa: B008 - frozen
    """Return the same model on every rank."""
    torch.manual_seed(seed)
    return ByteModel(config, backend="eager" if dtype == torch.float64 else None).to(dtype)


def train(model: ByteModel, source: Tensor, tokens: int, steps: int, rank: int = 0, ranks: int = 1,
          report: Callable[[int, float], None] = lambda step, loss: None) -> list[float]:
    """Train on windows of ``tokens`` bytes, of which this rank reads its part; return the losses in bits per byte."""
    if ranks > 1:
        call = ShardedAttention()
        for block in model.layers():
            block.attention.call = call
    optimizer = Optimizer(model)
    start, stop = rank * tokens // ranks, (rank + 1) * tokens // ranks
    losses = []
    for step in range(steps):
        window = source[step * tokens:(step + 1) * tokens + 1].long()[None]
        state = model.init_state(1)  # at the window's beginning; of the layers' states each rank is given the whole
        before = torch.cat([state.last, window[:, :start]], 1)[:, -model.config.grams:]
        logits, _ = model(window[:, start:stop], State(before, state.layers))
        loss = functional.cross_entropy(logits[0], window[0, start + 1:stop + 1], reduction="sum") / tokens
        loss.backward()
        total = loss.detach().clone()
        if ranks > 1:
            distributed.sum_gradients(model.parameters())  # each rank has its share
            dist.all_reduce(total)
        optimizer.step(min(1.0, (step + 1) / 10))
        losses.append(total.item() / math.log(2))
        report(step, losses[-1])
    return losses


def run(rank: int, ranks: int, arguments: argparse.Namespace) -> None:
    """Train on this rank; rank 0 tells, saves, and trains again alone to compare."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    source = text.load(arguments.seed).training
    if source.shape[0] <= arguments.tokens * arguments.steps:
        raise SystemExit(f"--tokens {arguments.tokens} --steps {arguments.steps}: the text has only {source.shape[0]} "
                         "bytes")
    model = build(arguments.seed, getattr(torch, arguments.dtype))
    alone = copy.deepcopy(model)

    def report(step: int, loss: float) -> None:
        if rank == 0:
            print(f"step {step + 1:3d}  {loss:.4f} bits per byte", flush=True)

    if rank == 0:
        print(f"{arguments.tokens} bytes a step over {ranks} process{'es' * (ranks > 1)}")
    losses = train(model, source, arguments.tokens, arguments.steps, rank, ranks, report)
    if rank == 0 and arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(model, arguments.out)  # whole or not at all
        print(f"saved {arguments.out}")
    if rank == 0 and ranks > 1 and not arguments.no_comparison:
        again = train(alone, source, arguments.tokens, arguments.steps)
        difference = max(abs(a - b) / b for a, b in zip(losses, again, strict=True))
        print(f"the losses of one process differ by at most {difference:.1e} of themselves")


def worker(rank: int, ranks: int, arguments: argparse.Namespace) -> None:
    """Join the others and run."""
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    run(rank, ranks, arguments)
    dist.destroy_process_group()


def main() -> None:
    """Read the arguments; under torchrun this is one of its processes, else it starts them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="without torchrun (default 2)")
    parser.add_argument("--tokens", type=int, default=8192, help="bytes in one text, sharded over the processes")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where rank 0 saves the model")
    parser.add_argument("--no-comparison", action="store_true", help="do not train again in one process")
    arguments = parser.parse_args()
    if min(arguments.processes, arguments.tokens, arguments.steps) < 1:
        parser.error("--processes, --tokens and --steps: expected 1 or more")
    if "RANK" in os.environ:
        worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), arguments)
    elif arguments.processes == 1:
        run(0, 1, arguments)
    else:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.multiprocessing.spawn(worker, (arguments.processes, arguments), arguments.processes)


if __name__ == "__main__":
    main()
