"""The example's training in a world's processes."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import torch

from portable_gla.demo import checkpoint
from portable_gla.demo.model import Config

CONFIG = Config(width=32, hidden=48, rows=256)
_PATH = Path(__file__).parents[3] / "examples" / "long_context.py"


def _example():
    spec = importlib.util.spec_from_file_location("long_context_example", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(seed):
    """Return bytes that have something to learn: each depends on two far ones."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randint(97, 105, (4096,), generator=draw)
    for place in range(64, found.shape[0]):
        found[place] = 97 + (int(found[place - 64]) + int(found[place - 1])) % 8
    return found.to(torch.uint8)


def losses(rank, size, seed, tokens, steps, dtype):
    example = _example()
    return example.train(example.build(seed, dtype, CONFIG), text(seed), tokens, steps, rank, size)


def dies(rank, size, seed, folder, victim, writing):
    """Save after every step; the victim is killed in its third, rank 0 while it writes if ``writing``."""
    example = _example()
    model = example.build(seed, torch.float32, CONFIG)
    path = Path(folder) / "model.safetensors"

    def report(step, loss):
        if rank == victim and step == 2 and not writing:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0:
            if rank == victim and step == 2:
                import safetensors.torch

                def half(tensors, name, metadata):
                    Path(name).write_bytes(b"half of it")
                    os.kill(os.getpid(), signal.SIGKILL)

                safetensors.torch.save_file = half
            checkpoint.save(model, path)

    example.train(model, text(seed), 96, 5, rank, size, report)
