"""Ranks that die, hang, or describe another call."""

from __future__ import annotations

import datetime
import os
import signal
import time

import torch

from portable_gla import distributed
from portable_gla.distributed import api

TOKENS, HEADS, KEY, VALUE = 12, 2, 4, 6


def tensors(tokens=TOKENS, heads=HEADS, key=KEY, value=VALUE, batch=1, dtype=torch.float32):
    q, k = (torch.randn(batch, tokens, heads, key, dtype=dtype, requires_grad=True) for _ in range(2))
    v = torch.randn(batch, tokens, heads, value, dtype=dtype, requires_grad=True)
    g = torch.nn.functional.logsigmoid(torch.randn(batch, tokens, heads, key, dtype=dtype)).requires_grad_()
    return q, k, v, g


def call(rank, size, victim=None, how=None, when="before"):
    """Go through one step; the victim dies or hangs ``when``; return how long it took to fail."""
    q, k, v, g = tensors()
    begun = time.monotonic()
    if rank == victim and when == "before":
        _end(how)
    o = distributed.attention(q, k, v, g)
    if rank == victim and when == "backward":
        _end(how)
    begun = time.monotonic()
    try:
        o.sum().backward()
    except distributed.RankFailure as error:
        error.seconds = time.monotonic() - begun
        raise
    return time.monotonic() - begun


def timed(rank, size, *arguments):
    begun = time.monotonic()
    try:
        return call(rank, size, *arguments)
    except distributed.RankFailure as error:
        error.seconds = time.monotonic() - begun
        raise


def stays_away(rank, size):
    """With an agreed sharding, rank 1 calls with other shapes: it alone can notice."""
    inputs = tensors()
    agreed = distributed.agree(*inputs)
    if rank == 1:
        inputs = tensors(tokens=TOKENS + 1)
    begun = time.monotonic()
    try:
        return distributed.attention(*inputs, sharding=agreed).shape
    except distributed.RankFailure as error:
        error.seconds = time.monotonic() - begun
        raise


def another_group(rank, size):
    """Rank 1 takes a smaller group than the others."""
    smaller = torch.distributed.new_group([0, 1], timeout=datetime.timedelta(seconds=4))
    begun = time.monotonic()
    try:
        return distributed.attention(*tensors(), group=smaller if rank == 1 else None).shape
    except distributed.RankFailure as error:
        error.seconds = time.monotonic() - begun
        raise


def _end(how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def describe(rank, size, odd, change):
    """Call, rank ``odd`` with something changed; nothing may have been computed when it fails."""
    arguments = {"output_final_state": True}
    shapes = {}
    if rank == odd:
        for name, value in change.items():
            (shapes if name in ("heads", "key", "value", "batch", "dtype") else arguments)[name] = value
    q, k, v, g = tensors(**shapes)
    gate = arguments.pop("gate", None)
    if gate == "head":
        g = g[..., 0]
    elif gate == "none":
        g = None
    if arguments.pop("broken", False):
        k = k[:, 1:]
    if arguments.pop("detached", False):
        q, k, v, g = (x.detach() for x in (q, k, v, g))
    if arguments.pop("stateful", False):
        arguments["initial_state"] = torch.zeros(1, HEADS, KEY, VALUE)
    ends = arguments.pop("ends", None)
    if ends is not None or "everyone" in change:
        arguments["cu_seqlens"] = torch.tensor([0, 5, size * TOKENS] if ends is None else ends)
    arguments.pop("everyone", None)
    computed = []
    genuine = api.local_attention
    api.local_attention = lambda *a, **kw: computed.append(1) or genuine(*a, **kw)
    try:
        distributed.attention(q, k, v, g, **arguments)
    finally:
        api.local_attention = genuine
        assert not computed


def malformed(rank, size, what):
    q, k, v, g = tensors()
    if what == "bonus":
        distributed.attention(q, k, v, g, bonus=torch.zeros(1))
    elif what == "ends":
        distributed.attention(q, k, v, g, cu_seqlens=torch.tensor([0, 23]))
    elif what == "group":
        distributed.attention(q, k, v, g, group="sequence")
    else:
        mesh = torch.distributed.init_device_mesh("cpu", (1, size), mesh_dim_names=("data", "sequence"))
        assert distributed.attention(q, k, v, g, group=mesh["sequence"]).shape == v.shape
        distributed.attention(q, k, v, g, group=mesh)


def outsider(rank, size):
    """A group of rank 0 alone computes; rank 1 is told that it is not in it."""
    group = torch.distributed.new_group([0])
    q, k, v, g = tensors()
    try:
        return list(distributed.attention(q, k, v, g, group=group).shape)
    except ValueError as error:
        return str(error)
