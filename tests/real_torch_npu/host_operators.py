"""Operators of ``npu`` tensors, computed by the CPU's: there is no CANN, and device memory is the host's.

What torch_npu does itself is left to it: allocating, views, and copies of contiguous tensors
between host and device.
``python -m host_operators MODULE ARGUMENTS`` runs a module so.
"""

from __future__ import annotations

import collections
import ctypes
import runpy
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_aten = torch.ops.aten
_ALLOCATE = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)
_NPU = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)


def on_npu(x: Any) -> bool:
    """Tell whether this is an ``npu`` tensor."""
    return isinstance(x, Tensor) and x.device.type == "npu"


def on_host(x: Tensor) -> Tensor:
    """Return a CPU tensor in the memory of an ``npu`` tensor."""
    storage = x.untyped_storage()
    size = storage.nbytes() // x.element_size() * x.element_size()
    if not size:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    memory = (ctypes.c_char * size).from_address(storage.data_ptr())
    return torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, x.stride(), x.storage_offset())


def _to_npu(x: Tensor) -> Tensor:
    """Give a result memory of the device's own allocator, in the same strides."""
    found = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="npu")
    on_host(found).copy_(x)
    return found


class HostOperators(TorchDispatchMode):
    """Within it ``npu`` tensors can be computed with; ``counts`` says how often each operator was.

    ``by_itself`` counts what torch_npu did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.by_itself: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        made = device is not None and torch.device(device).type == "npu"
        if not made and not any(map(on_npu, tree_leaves((args, kwargs)))):
            return function(*args, **kwargs)
        if function.namespace != "aten":
            # Made of others: its kernel for the NPU, and those come back here.
            with self, torch._C._AutoDispatchBelowAutograd():
                return function.redispatch(_NPU, *args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            # Such as reshape, a view or a copy.
            with self, torch._C._AutoDispatchBelowAutograd():
                return function.decompose(*args, **kwargs)
        if function.is_view or function.overloadpacket in _ALLOCATE or self._copied_by_itself(function, args):
            self.by_itself[str(function.overloadpacket)] += 1
            return function(*args, **kwargs)
        self.counts[str(function.overloadpacket)] += 1
        if function is _aten._to_copy.default:
            return self._to_copy(args[0], **kwargs)
        return self._compute(function, args, kwargs, made)

    @staticmethod
    def _copied_by_itself(function: Any, args: tuple[Any, ...]) -> bool:
        """Tell whether this copies the bytes of one tensor to another, which needs no operator."""
        if function is not _aten.copy_.default:
            return False
        to, source = args[:2]
        return to.device != source.device and to.dtype == source.dtype and to.shape == source.shape and (
            to.is_contiguous() and source.is_contiguous())

    def _to_copy(self, x: Tensor, *, device: Any = None, pin_memory: Any = None, **options: Any) -> Tensor:
        """Move, and convert, where x or what becomes of it is on the NPU."""
        target = x.device if device is None else torch.device(device)
        host = x
        if on_npu(x):
            host = self._copied(x, torch.device("cpu")) if x.is_contiguous() else on_host(x)
        found: Tensor = _aten._to_copy.default(host, **options)
        if target.type == "cpu":
            return found
        if found.is_contiguous():
            return self._copied(found, target)
        moved = torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device=target)
        on_host(moved).copy_(found)
        return moved

    def _copied(self, x: Tensor, device: torch.device) -> Tensor:
        """Have torch_npu copy a contiguous tensor from or to the NPU."""
        self.by_itself["aten.copy_"] += 1
        return torch.empty(x.shape, dtype=x.dtype, device=device).copy_(x)

    @staticmethod
    def _compute(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: bool) -> Any:
        given: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of what stands in for it

        def stand_in(x: Any) -> Any:
            if not on_npu(x):
                return x
            host = on_host(x)
            given[id(host)] = x, host
            return host

        def back(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return given[id(x)][0] if id(x) in given else _to_npu(x)

        args, kwargs = tree_map(stand_in, (args, kwargs))
        if made:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        return tree_map(back, function(*args, **kwargs))


if __name__ == "__main__":
    del sys.argv[0]
    with HostOperators():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
