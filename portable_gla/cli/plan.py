"""``portable-gla plan``: what a call would do, here or on a device that is not here."""

from __future__ import annotations

import dataclasses
import enum
from typing import Annotated, Any

import typer

import portable_gla
from portable_gla import devices, scaling
from portable_gla.cli import options, output
from portable_gla.problem import Device, Problem

_GROUPED = "Grouped heads"
_FEATURES = "What the call uses"
_LONG = "Long context"


class Keep(str, enum.Enum):
    """Where what the backward pass needs is kept."""

    DEVICE = "device"
    STATES = "states"
    ALL = "all"
    STREAM = "stream"


class Mode(str, enum.Enum):
    """What the call is for."""

    TRAIN = "train"
    INFER = "infer"
    DECODE = "decode"


def plan(
    device: Annotated[str | None, typer.Option(
        metavar="DEVICE",
        help="A row of the device table (v100, h200, 910b, ...; it need not be here) or a device of this machine (cpu, "
             "cuda:0). Default: this machine's first accelerator, else its CPU.")] = None,
    tokens: Annotated[int, options.integer(0, "T: tokens per sequence, or of the whole pack.")] = 4096,
    batch: Annotated[int, options.integer(1, "B: sequences.")] = 1,
    heads: Annotated[int, options.integer(1, "H: heads.")] = 4,
    key_dim: Annotated[int, options.integer(1, "K: channels per head of q, k and a per-channel gate.")] = 128,
    value_dim: Annotated[int | None, options.integer(1, "V: channels per head of v. Default: K.")] = None,
    dtype: Annotated[options.Dtype, typer.Option(help="dtype of q, k and v.")] = options.Dtype.BFLOAT16,
    gate: Annotated[options.Gate, typer.Option(
        help="g per channel (GLA), per head (Mamba-2), constant (RetNet), or none.")] = options.Gate.CHANNEL,
    gate_dtype: Annotated[options.Dtype | None, typer.Option(help="dtype of g. Default: --dtype.")] = None,
    mode: Annotated[Mode, typer.Option(
        help="train: forward and backward; infer: forward; decode: a few tokens against stored states.")] = Mode.TRAIN,
    packed: Annotated[bool, typer.Option(
        "--packed", help="Sequences packed along T (cu_seqlens).", rich_help_panel=_FEATURES)] = False,
    sequences: Annotated[int, options.integer(1, "N: how many, with --packed.", panel=_FEATURES)] = 1,
    reverse: Annotated[bool, typer.Option("--reverse", help="Right to left.", rich_help_panel=_FEATURES)] = False,
    bonus: Annotated[bool, typer.Option("--bonus", help="RWKV-6's u.", rich_help_panel=_FEATURES)] = False,
    initial_state: Annotated[bool, typer.Option(
        "--initial-state", help="Start from a given state.", rich_help_panel=_FEATURES)] = False,
    final_state: Annotated[bool, typer.Option(
        "--final-state", help="Return the last state.", rich_help_panel=_FEATURES)] = False,
    q_heads: Annotated[int, options.integer(0, "Heads of q, 0: H.", panel=_GROUPED)] = 0,
    k_heads: Annotated[int, options.integer(0, "Heads of k, 0: H.", panel=_GROUPED)] = 0,
    v_heads: Annotated[int, options.integer(0, "Heads of v, 0: H.", panel=_GROUPED)] = 0,
    gate_heads: Annotated[int, options.integer(0, "Heads of g, 0: H.", panel=_GROUPED)] = 0,
    shards: Annotated[int, options.integer(
        1, "Devices that share each sequence.", "--devices", panel=_LONG)] = 1,
    layers: Annotated[int, options.integer(1, "Calls one after another, each keeping what its backward needs.",
                                           panel=_LONG)] = 1,
    keep: Annotated[Keep, typer.Option(
        help="What waits for the backward pass stays on the device; its states go to the host (offload_states), or all "
             "of it; stream: the whole sequence lies on the host.", rich_help_panel=_LONG)] = Keep.DEVICE,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="Ask for this backend, and no other.")] = None,
    pin: Annotated[list[str] | None, typer.Option(
        help="Fix a part of the plan, such as segments=2. Repeatable.", metavar="NAME=INTEGER")] = None,
    json: options.Json = False,
) -> None:
    """Say which backend would serve a call, why no other one does, and what it should cost.

    Nothing is computed, and the device need not be on this machine. All figures are predictions.

    Exit status: 0 if a backend serves it, 1 if none does, 2 for a wrong argument.

    With --devices, --layers or --keep it also says what a stack of such calls takes on each device and on the host,
    what moves between them and whether it hides behind the computation, and the largest T that fits. The first lines
    are then those of one layer's call on one device.

    Example: portable-gla plan --device v100 --tokens 262144 --key-dim 256 --value-dim 512 --dtype float16

    Example: portable-gla plan --device v100 --devices 8 --tokens 262144 --layers 24 --key-dim 256 --value-dim 512
    """
    if backend is not None:
        options.known_backends([backend])
    if sequences != 1 and not packed:
        raise typer.BadParameter(f"expected 1 without --packed, got {sequences}", param_hint="--sequences")
    if packed and batch != 1:
        raise typer.BadParameter(f"expected 1 with --packed, got {batch}", param_hint="--batch")
    decode = mode is Mode.DECODE
    for name, given in (("--packed", packed), ("--reverse", reverse)):
        if decode and given:
            raise typer.BadParameter("expected train or infer with " + name + ", got decode", param_hint="--mode")
    try:
        problem = Problem(
            tokens=tokens, heads=heads, key_dim=key_dim, value_dim=key_dim if value_dim is None else value_dim,
            batch=batch, sequences=sequences if packed else -1, q_heads=q_heads, k_heads=k_heads, v_heads=v_heads,
            gate_heads=gate_heads, dtype=dtype.torch, gate=gate.value,
            gate_dtype=None if gate_dtype is None else gate_dtype.torch, packed=packed,
            initial_state=initial_state or decode, final_state=final_state or decode, reverse=reverse, bonus=bonus,
            training=mode is Mode.TRAIN, mode="decode" if decode else "attention",
            pins=tuple(sorted(options.pins(pin or []).items())), device=_device(device))
        long = None
        if (shards, layers, keep) != (1, 1, Keep.DEVICE):
            long = scaling.plan_long(problem, devices=shards, layers=layers, keep=keep.value, backend=backend)
        found = portable_gla.plan(problem, backend=backend) if long is None else long.local
    except ValueError as error:
        raise options.refuse(error) from error
    limits = {} if long is None else {
        other: scaling.largest(problem, devices=shards, layers=layers, keep=other, backend=backend)
        for other in scaling.KEEPS if shards == 1 or other != "stream"}
    if json:
        output.write_json(as_data(found) if long is None else as_data(found) | {"long": long_as_data(long, limits)})
    else:
        output.say(str(found))
        if long is not None:
            output.say(f"{long}\n" + "\n".join(_limit(name, limits[name], long) for name in limits))
        if problem.device.type == "cpu":
            output.say(f"note      the floor is that of {devices.table()['cpu'].name}")
    raise typer.Exit(0 if found.backend is not None else 1)


def as_data(found: portable_gla.Plan) -> dict[str, Any]:
    """Write a plan as plain data, for JSON."""
    problem = dataclasses.asdict(found.problem)
    problem["dtype"] = str(found.problem.dtype).removeprefix("torch.")
    problem["gate_dtype"] = str(found.problem.gate_dtype).removeprefix("torch.")
    problem["pins"] = dict(found.problem.pins)
    schedule = None
    if found.schedule is not None:
        schedule = {field.name: getattr(found.schedule, field.name) for field in dataclasses.fields(found.schedule)}
        schedule["tiles"] = dict(found.schedule.tiles)
        schedule["notes"] = list(found.schedule.notes)
    return {
        "problem": problem, "backend": found.backend, "requested": found.requested, "fallback": found.fallback,
        "emulated": found.emulated, "schedule": schedule, "cost": dataclasses.asdict(found.cost),
        "reasons": {name: [reason._asdict() for reason in reasons] for name, reasons in found.reasons.items()}}


def long_as_data(long: scaling.LongPlan, limits: dict[str, int | None]) -> dict[str, Any]:
    """Write what concerns the whole sequence as plain data, for JSON."""
    return {"devices": long.devices, "layers": long.layers, "keep": long.keep, "tokens": long.problem.tokens,
            "device_bytes": long.device_bytes, "device_memory": long.device_memory, "fits": long.fits,
            "host_bytes": long.host_bytes, "traffic": [row._asdict() | {"hides": row.hides} for row in long.traffic],
            "largest_tokens": limits}


def _limit(name: str, tokens: int | None, long: scaling.LongPlan) -> str:
    what = "any that the host holds" if name == "stream" else (
        "not known" if tokens is None else f"about {tokens:,}")
    return f"largest T {what} with --keep {name}" + (" (this plan)" if name == long.keep else "")


def _device(text: str | None) -> Device:
    """Read a row of the device table, or a device of this machine."""
    if text is None:
        return devices.of(options.present_device(None))
    try:
        return devices.named(text)
    except ValueError:
        if text in {str(device) for device in devices.present()} | {device.type for device in devices.present()}:
            return devices.of(options.present_device(text))
        raise
