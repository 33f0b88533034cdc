"""A group of ranks, from what a user has: a process group, a dimension of a device mesh, or nothing (all ranks)."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Group:
    """One process group, with what is asked of it again and again."""

    def __init__(self, process_group: Any) -> None:
        self._process_group = weakref.ref(process_group)  # a destroyed group is not kept by what is known of it
        self.ranks: tuple[int, ...] = tuple(dist.get_process_group_ranks(process_group))  # by their global numbers
        self.size = len(self.ranks)
        self.rank = self.ranks.index(dist.get_rank())
        self.name: str = process_group.group_name
        backend = dist.get_backend(process_group)
        self._host = backend in ("gloo", "mpi")  # the others move an accelerator's memory only
        self.collectives = 0  # started so far: equal on ranks that walk in step

    @property
    def process_group(self) -> Any:
        """The ``torch.distributed.ProcessGroup``."""
        found = self._process_group()
        if found is None:
            raise RuntimeError(f"the process group {self.name!r} has been destroyed")
        return found

    def wire(self, like: Tensor | None = None) -> torch.device:
        """Return the device on which this group's messages lie: the CPU for Gloo and MPI, else the accelerator."""
        if self._host:
            return torch.device("cpu")
        if like is not None and like.device.type != "cpu":
            return like.device
        device = torch.accelerator.current_accelerator()
        return torch.device("cpu") if device is None else device

    def called(self, rank: int) -> str:
        """Name a rank of this group for a message."""
        return f"rank {rank}" if self.ranks[rank] == rank else f"rank {rank} (global rank {self.ranks[rank]})"


_known: weakref.WeakKeyDictionary[Any, Group] = weakref.WeakKeyDictionary()


def resolve(group: Any) -> Group:
    """Find the group that a user names.

    Parameters
    ----------
    group
        A ``torch.distributed.ProcessGroup``, a ``DeviceMesh`` of one dimension (``mesh["sequence"]`` of a larger one),
        or None: all ranks.

    Raises
    ------
    RuntimeError
        If ``torch.distributed`` is not there or not initialised.
    TypeError, ValueError
        If it is something else, a mesh of several dimensions, or a group that this process is not in.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("portable_gla.distributed needs torch.distributed.init_process_group() first (torchrun's "
                           "environment, backend nccl, hccl or gloo)")
    if group is None:
        group = dist.group.WORLD
    if hasattr(group, "get_group") and hasattr(group, "mesh_dim_names"):
        if group.ndim != 1:
            raise ValueError(f"group: expected a device mesh of one dimension, got {group.ndim} of shape "
                             f"{tuple(group.shape)}; pick one: mesh['name']")
        group = group.get_group()
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"group: global rank {dist.get_rank()} is not in it")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group: expected a ProcessGroup, a DeviceMesh of one dimension or None, "
                        f"got {type(group).__name__}")
    if dist.get_rank(group) < 0:
        raise ValueError(f"group: global rank {dist.get_rank()} is not in it: "
                         f"its ranks are {dist.get_process_group_ranks(group)}")
    found = _known.get(group)
    if found is None:
        found = _known[group] = Group(group)
    return found
