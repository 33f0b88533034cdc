"""Fake streams for CPU tensors: what a device may do at its worst, and a test can repeat.

Memory is poisoned with NaN wherever its content is not yet, or no longer, to be relied on: in device memory when it is
allocated and when it is given back, and in the target of a copy from its start to its end. A dependency can be left
out by its name, to see that the tests notice.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_CALLER = None  # the stream of whoever calls: what is queued there has run when the call returns


class CopyError(RuntimeError):
    """A copy that a fake was told to fail."""


class FakeEvent:
    """Whether everything before it is done, and what went wrong there."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None

    def happen(self, error: BaseException | None = None) -> None:
        """Mark it as done."""
        self.error = error
        self.done.set()


class _Fake:
    """What the two kinds share; a subclass queues work and blocks for events."""

    overlaps = True

    def __init__(self, seed: int, *, without: str | None = None, failing_copy: int | None = None) -> None:
        self.device = torch.device("cpu")
        self.seen: set[str] = set()
        """The names of all dependencies that were asked for."""
        self.copies = 0
        self.host_bytes = 0
        """Host memory taken and not given back."""
        self._spare: dict[tuple[Any, torch.dtype, int], list[Tensor]] = {}
        self._without, self._failing = without, failing_copy
        self._current: Any = _CALLER
        self._random = random.Random(seed)

    @contextlib.contextmanager
    def computing_on(self, stream: Any) -> Iterator[None]:
        """Make ``stream`` the current one."""
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def current(self) -> Any:
        """Return the current stream; None is the caller's own."""
        return self._current

    def launch(self, stream: Any, work: Callable[[], object]) -> None:
        """Run, or queue."""
        if stream is _CALLER:
            work()
        else:
            context, gradients = contextvars.copy_context(), torch.is_grad_enabled()

            def run() -> None:
                with torch.set_grad_enabled(gradients):
                    context.run(work)

            self._queue(stream, run)

    def copy(self, stream: Any, target: Tensor, source: Tensor) -> None:
        """Poison the target, and later copy."""
        self.copies += 1
        number = self.copies

        def finish() -> None:
            if number == self._failing:
                raise CopyError(f"copy {number} failed, as it was told to")
            with torch.no_grad():
                target.copy_(source)

        self.launch(stream, functools.partial(poison, target))
        self.launch(stream, finish)

    def wait(self, stream: Any, event: FakeEvent, why: str) -> None:
        """Wait, unless it is the dependency to leave out."""
        self.seen.add(why)
        if why == self._without:
            return
        if stream is _CALLER:
            self._block(event)
        else:
            self._queue(stream, event)

    def synchronise(self, event: FakeEvent, why: str = "") -> None:
        """Block, unless it is the dependency to leave out."""
        self.seen.add(why)
        if why != self._without or not why:
            self._block(event)

    def empty_strided(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate; poisoned in the order of the current stream."""
        count = _span(shape, strides)
        spare = self._spare.get((self._current, dtype, count))
        memory = spare.pop() if spare else torch.empty(count, dtype=dtype)
        self.launch(self._current, functools.partial(poison, memory))
        return memory.as_strided(tuple(shape), tuple(strides))

    def free(self, stream: Any, tensor: Tensor) -> None:
        """Poison in the order of the stream, which may have the memory again."""
        memory = tensor.as_strided((_span(tensor.shape, tensor.stride()),), (1,))
        self.launch(stream, functools.partial(poison, memory))
        if memory.nbytes == tensor.untyped_storage().nbytes():
            self._spare.setdefault((stream, tensor.dtype, memory.numel()), []).append(memory)

    def host_memory(self, count: int) -> Tensor:
        """Allocate, poisoned."""
        self.host_bytes += count
        return poison(torch.empty(count, dtype=torch.uint8))

    def release_host_memory(self, memory: Tensor) -> None:
        """Poison what is given back."""
        self.host_bytes -= memory.numel()
        poison(memory)

    def _queue(self, stream: Any, item: Any) -> None:
        raise NotImplementedError

    def _block(self, event: FakeEvent) -> None:
        raise NotImplementedError


def poison(x: Tensor) -> Tensor:
    """Fill with NaN: of bytes and integers, with ones in every bit."""
    with torch.no_grad():
        return x.fill_(math.nan if x.is_floating_point() else torch.iinfo(x.dtype).max)


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Count the elements from the first to the last that a tensor reaches."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class ShuffledStreams(_Fake):
    """Streams in one thread: which one goes on, and how far, is drawn at every call. A seed repeats a schedule.

    Every stream has a speed of its own, drawn too: some hardly ever go on unless somebody waits for them.
    """

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self._streams: list[deque[Any]] = []
        self._speeds: list[float] = []
        self._eagerness = self._random.choice((0.05, 0.3, 0.6))  # how far the streams keep up with their caller
        self._failed: dict[int, BaseException] = {}

    def new_stream(self) -> Any:
        """Start one."""
        self._streams.append(deque())
        self._speeds.append(self._random.choice((0.01, 0.3, 1.0)))
        return len(self._streams) - 1

    def record(self, stream: Any) -> FakeEvent:
        """Queue an event."""
        event = FakeEvent()
        if stream is _CALLER:
            event.happen()
        else:
            self._queue(stream, ("record", event))
        return event

    def finish(self) -> None:
        """Run everything that is queued."""
        while any(self._streams):
            self._step()

    def _queue(self, stream: Any, item: Any) -> None:
        self._streams[stream].append(item)
        while self._random.random() < self._eagerness:
            self._step(idle=True)

    def _block(self, event: FakeEvent) -> None:
        while not event.done.is_set():
            self._step()
        if event.error is not None:
            raise event.error

    def _step(self, idle: bool = False) -> None:
        ready = [number for number, items in enumerate(self._streams)
                 if items and not (isinstance(items[0], FakeEvent) and not items[0].done.is_set())]
        if not ready:
            if idle:
                return
            raise RuntimeError("no stream can go on: an event is waited for that nothing will bring about")
        number, = self._random.choices(ready, [self._speeds[number] for number in ready])
        self._run_next(number)

    def _run_next(self, number: int) -> None:
        item = self._streams[number].popleft()
        if isinstance(item, tuple):
            item[1].happen(self._failed.get(number))
        elif isinstance(item, FakeEvent):
            if item.error is not None:
                self._failed.setdefault(number, item.error)
        elif number not in self._failed:
            before, self._current = self._current, _CALLER
            try:
                item()
            except Exception as error:  # noqa: BLE001 - raised to whoever waits
                self._failed[number] = error
            finally:
                self._current = before


class ThreadedStreams(_Fake):
    """Streams as threads, with random delays between any two pieces of work. Call :meth:`close` when done."""

    def __init__(self, seed: int, *, longest_delay: float = 2e-4, **options: Any) -> None:
        super().__init__(seed, **options)
        self._longest = longest_delay
        self._threads: list[tuple[queue.SimpleQueue[Any], threading.Thread]] = []

    def new_stream(self) -> Any:
        """Start one."""
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, args=(items, random.Random(self._random.random())), daemon=True)
        self._threads.append((items, thread))
        thread.start()
        return items

    def record(self, stream: Any) -> FakeEvent:
        """Queue an event."""
        event = FakeEvent()
        if stream is _CALLER:
            event.happen()
        else:
            self._queue(stream, ("record", event))
        return event

    def close(self) -> None:
        """Run what is queued, and end the threads."""
        for items, _ in self._threads:
            items.put(("stop", None))
        for _, thread in self._threads:
            thread.join()

    def _queue(self, stream: Any, item: Any) -> None:
        stream.put(item)

    def _block(self, event: FakeEvent) -> None:
        if not event.done.wait(60):
            raise RuntimeError("an event is waited for that nothing brings about")
        if event.error is not None:
            raise event.error

    def _run(self, items: queue.SimpleQueue[Any], chance: random.Random) -> None:
        failed: BaseException | None = None
        while True:
            item = items.get()
            if chance.random() < 0.3:
                time.sleep(chance.random() * self._longest)
            if isinstance(item, tuple):
                if item[0] == "stop":
                    return
                item[1].happen(failed)
            elif isinstance(item, FakeEvent):
                item.done.wait()
                failed = failed or item.error
            elif failed is None:
                try:
                    item()
                except Exception as error:  # noqa: BLE001 - raised to whoever waits
                    failed = error
