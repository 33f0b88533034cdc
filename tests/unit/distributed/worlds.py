"""Worlds of processes that run one task after another: each process starts once, torch is imported once for all.

A task is a function of this folder's modules, given by name; it gets (rank, size, *arguments) and what it returns comes
back to the test, one result for each rank.
"""

from __future__ import annotations

import datetime
import importlib
import multiprocessing
import socket
import time
import traceback

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([  # what a process would import; the optimisers import the second
    "torch", "torch._dynamo", "safetensors.torch", "portable_gla.distributed", "portable_gla.testing.budgets"])


class Lost(Exception):
    """A rank did not answer."""


class World:
    """``size`` processes with a Gloo group; ``timeout`` is the group's, in seconds."""

    def __init__(self, size, timeout=60.0):
        self.size = size
        port = _free_port()
        self._pipes, self.processes = [], []
        for rank in range(size):
            here, there = _context.Pipe()
            process = _context.Process(target=_serve, args=(there, rank, size, port, timeout), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self.processes.append(process)

    def start(self, task, *arguments, ranks=None):
        """Give a task ``"module:function"`` to every rank, or to some."""
        for rank in range(self.size) if ranks is None else ranks:
            self._pipes[rank].send((task, arguments))

    def result(self, rank, within=120.0):
        """Wait for one rank's result; what it raised, as (type's name, message), comes as an ``Error``."""
        try:
            if not self._pipes[rank].poll(within):
                raise Lost(f"rank {rank} did not answer within {within} s")
            return self._pipes[rank].recv()
        except (EOFError, ConnectionError) as error:
            raise Lost(f"rank {rank} is dead") from error

    def run(self, task, *arguments, within=120.0):
        """Run a task on every rank; return the results, or raise what a rank raised."""
        self.start(task, *arguments)
        found = [self.result(rank, within) for rank in range(self.size)]
        for rank, result in enumerate(found):
            if isinstance(result, Error):
                raise AssertionError(f"rank {rank} of {self.size}: {result.trace}")
        return found

    def close(self):
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + 5
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


class Error:
    """What a task raised."""

    def __init__(self, error):
        self.kind = type(error).__name__
        self.message = str(error)
        self.attributes = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        self.trace = traceback.format_exc()


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _serve(pipe, rank, size, port, timeout):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0, timeout=datetime.timedelta(seconds=30))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size,
                            timeout=datetime.timedelta(seconds=timeout))
    while True:
        try:
            task, arguments = pipe.recv()
        except EOFError:
            return
        module, function = task.split(":")
        try:
            found = getattr(importlib.import_module(module), function)(rank, size, *arguments)
        except Exception as error:  # noqa: BLE001 - handed to the test
            found = Error(error)
        try:
            pipe.send(found)
        except BrokenPipeError:
            return
