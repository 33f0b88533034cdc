"""The context under which attention's saved states go to host memory."""

from __future__ import annotations

import operator
import threading
import weakref
from contextvars import Token
from typing import Any

import torch
from torch import Tensor

from portable_gla import ops, streams
from portable_gla.backend import Call
from portable_gla.offload.engine import Engine, Moved
from portable_gla.offload.pool import HostPool
from portable_gla.streams import Streams

_TENSORS = ("residuals", "all")
_engines: dict[tuple[torch.device, int | None, int], Engine] = {}  # so that memory is registered once, not every step
_engines_lock = threading.Lock()


def offload_states(*, tensors: str = "residuals", host_bytes: int | None = None, prefetch: int = 1,
                   streams: Streams | None = None) -> OffloadStates:
    """Keep in host memory what :func:`portable_gla.attention` saves for its backward pass.

    ::

        with portable_gla.offload_states():
            loss = model(batch)         # states between segments are copied out while the next layers compute
        loss.backward()                 # and back, ahead of the layer that wants them

    The device then holds the states of about ``1 + prefetch`` calls instead of all. Gradients are the same to the bit.
    On a CPU, and for a call that saves nothing, it changes nothing.

    Parameters
    ----------
    tensors
        ``"residuals"``: the states between segments, a tensor of [boundaries, H, K, V] a call. ``"all"``: also what
        the call was given as q, k, v and g; that frees device memory only where nothing else holds them.
    host_bytes
        The size of the pool in host memory, taken and registered with the driver when the first call is made; None:
        the pool grows as calls ask. Either way it is kept for later steps, and for other contexts of the same
        ``host_bytes`` and ``prefetch``; see :func:`portable_gla.offload.release_host_memory`.
    prefetch
        How many calls' tensors are copied ahead of the backward pass, and how many calls' may be on their way out; 1
        or more.
    streams
        The streams of the device, in place of its own: for tests, see ``portable_gla.testing.streams``.

    Returns
    -------
    OffloadStates
        A context manager, which can be entered again and again; ``host_bytes`` and ``moved_bytes`` tell what it did.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument.
    HostMemoryError
        Where the host, or the fixed pool, is too small: on entering a call, before any of its work. (With
        ``tensors="all"`` q, k, v and g are only asked for after the forward pass.)

    Notes
    -----
    Enter it around what ``torch.compile`` compiled, not inside. Within ``torch.utils.checkpoint`` nothing is saved,
    so nothing is moved: what is recomputed is used at once. It stands on
    :class:`torch.autograd.graph.saved_tensors_hooks`, of which the innermost counts: inside another such context
    (``save_on_cpu``) this one decides, and the other way round. An error in a copy is raised in the backward pass.
    """
    if tensors not in _TENSORS:
        raise ValueError(f"tensors: expected one of {_TENSORS}, got {tensors!r}")
    if host_bytes is not None and _integer("host_bytes", host_bytes) < 1:
        raise ValueError(f"host_bytes: expected 1 or more, got {host_bytes}")
    if _integer("prefetch", prefetch) < 1:
        raise ValueError(f"prefetch: expected 1 or more, got {prefetch}")
    return OffloadStates(tensors, host_bytes, prefetch, streams)


def release_host_memory() -> None:
    """Give all host memory that :func:`offload_states` keeps for later steps, and no graph uses, back."""
    with _engines_lock:
        for engine in _engines.values():
            engine.pool.release()


class OffloadStates:
    """What :func:`offload_states` returns."""

    def __init__(self, tensors: str, host_bytes: int | None, prefetch: int, streams: Streams | None) -> None:
        self.moved_bytes = 0
        """Bytes copied out under this context so far."""
        self._all, self._fixed, self._prefetch, self._injected = tensors == "all", host_bytes, prefetch, streams
        self._used: dict[torch.device, Engine] = {}
        self._notes: dict[int, tuple[weakref.ref[Any], int, bool]] = {}
        self._relaxed = 0  # the group whose tensors may come back with other strides
        self._entered = _Stack()

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory in the pools that this context has used."""
        return sum(engine.pool.bytes for engine in self._used.values())

    def __enter__(self) -> OffloadStates:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        hooks.__enter__()
        self._entered.items.append((hooks, ops.saving.set(self)))
        return self

    def __exit__(self, *error: object) -> None:
        hooks, token = self._entered.items.pop()
        ops.saving.reset(token)
        hooks.__exit__(*error)
        self._notes.clear()
        for engine in self._used.values():
            engine.flush()

    def expect(self, call: Call, count: int) -> None:
        """Make sure, before a call computes, that there is host memory for the ``count`` bytes of its states."""
        engine = self._engine(call.q.device)
        if engine is not None and count:
            engine.pool.require(count)

    def note(self, call: Call, residual: Tensor) -> None:
        """Remember which storage holds a call's states, and with ``tensors="all"`` its inputs."""
        engine = self._engine(call.q.device)
        if engine is None:
            return
        group = engine.new_group()
        if self._all:
            for x in (call.q, call.k, call.v, call.g):
                if x is not None:
                    self._remember(x, group, owned=False)
        self._remember(residual, group, owned=True)

    def relax(self, residual: Tensor) -> None:
        """Remember that a call's tensors may come back without the gaps that they have as parts of larger ones."""
        note = self._note(residual)
        if note is not None:
            self._relaxed = note[1]

    def _note(self, x: Tensor) -> tuple[weakref.ref[Any], int, bool] | None:
        # While torch.compile traces, x may be a stand-in without memory.
        note = self._notes.get(x.untyped_storage()._cdata) if type(x) is Tensor else None
        return None if note is None or note[0]() is None else note

    def _remember(self, x: Tensor, group: int, *, owned: bool) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        self._notes[key] = weakref.ref(storage, lambda _: self._notes.pop(key, None)), group, owned

    def _pack(self, x: Tensor) -> Moved | _Kept:
        note = self._note(x)
        if note is None or not x.numel():
            return _Kept(x)
        engine = self._engine(x.device)
        assert engine is not None
        moved = engine.pack(x, group=note[1], owned=note[2], dense=note[1] == self._relaxed)
        self.moved_bytes += moved.slot.memory.numel()
        return moved

    def _engine(self, device: torch.device) -> Engine | None:
        found = self._used.get(device)
        if found is not None:
            return found
        if self._injected is not None:
            found = _new_engine(self._injected, self._fixed, self._prefetch)
        else:
            key = (device, self._fixed, self._prefetch)
            with _engines_lock:
                found = _engines.get(key)
                if found is None:
                    layer = streams.of(device)
                    if not layer.overlaps:
                        return None
                    found = _engines[key] = _new_engine(layer, self._fixed, self._prefetch)
        self._used[device] = found
        return found


class _Stack(threading.local):
    """The contexts that a thread has entered, to be left in turn."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, Token[ops.Saving | None]]] = []


class _Kept:
    """A tensor that stays where it is; PyTorch does not look at its version where hooks are set, so this does."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, None if tensor.is_inference() else tensor._version


def _unpack(packed: Moved | _Kept) -> Tensor:
    if isinstance(packed, Moved):
        return packed.engine.unpack(packed)
    if packed.version is not None and packed.tensor._version != packed.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a tensor "
            f"of shape {list(packed.tensor.shape)} is at version {packed.tensor._version}, expected {packed.version}")
    return packed.tensor


def _new_engine(layer: Streams, fixed: int | None, prefetch: int) -> Engine:
    return Engine(layer, HostPool(layer, fixed), prefetch)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
