"""What calls launch, from the launcher itself, on tensors without data: a new kernel or constant is never forgotten."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from portable_gla.backend import Call, DecodeCall
from portable_gla_ascend import launch
from portable_gla_ascend.socs import Soc

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
GATES = ("channel", "head", "constant", "none")
FEATURES = ("plain", "all", "bonus")
"""Kinds of calls: "plain" has no feature, "all" every one at once but a bonus, "bonus" that too."""
SIZES = ((64, 64), (128, 128), (256, 256), (512, 512), (64, 512), (512, 64))
"""K and V."""
_SAMPLE = (("bf16", "channel", "plain", (128, 128)), ("f32", "channel", "all", (64, 64)),
           ("f16", "head", "bonus", (256, 256)), ("f32", "constant", "all", (512, 512)),
           ("bf16", "none", "bonus", (128, 128)))
_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32",
          torch.int64: "*i64"}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel with the types and constants of a launch, as plain data."""

    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: list[str]  # divisible by 16
    options: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return it as a dict."""
        return dataclasses.asdict(self)


class Recorder:
    """Stands in for the kernels, and writes down how they are launched."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)

        class Kernel:
            def __getitem__(_, grid: Any) -> Callable[..., None]:
                return lambda *args, **kwargs: self.launches.append(describe(name, function, args, kwargs))

        return Kernel()


def describe(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """Describe a launch as Triton does: None is a constant, and so is 1, where a kernel does not say otherwise."""
    signature = inspect.signature(function.fn)
    options = {key: kwargs[key] for key in kwargs if key not in signature.parameters}
    bound = signature.bind(*args, **{key: kwargs[key] for key in kwargs if key not in options})
    bound.apply_defaults()
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned = []
    for parameter in function.params:
        value = bound.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            constants[parameter.name] = value
            continue
        types[parameter.name] = _type(value)
        if parameter.do_not_specialize:
            continue
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            aligned.append(parameter.name)
        elif isinstance(value, int) and not isinstance(value, bool) and value == 1:
            del types[parameter.name]
            constants[parameter.name] = 1
    return Launch(name, types, constants, aligned, options)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -2**31 <= value < 2**31 else "i64"


def kinds(sample: bool) -> Iterator[tuple[dict[str, str], tuple[tuple[int, int], ...]]]:
    """Yield kinds of calls, as dtype, gate and features, with the K and V to compile them for."""
    if sample:
        yield from (({"dtype": dtype, "gate": gate, "features": features}, (size,))
                    for dtype, gate, features, size in _SAMPLE)
        return
    for dtype, gate, features in itertools.product(DTYPES, GATES, FEATURES):
        yield {"dtype": dtype, "gate": gate, "features": features}, SIZES


def record(kernels: Any, soc: Soc, configuration: dict[str, Any],
           passes: Iterable[str] = ("forward", "backward", "decode")) -> list[Launch]:
    """Return the launches of one kind of call."""
    dtype = DTYPES[configuration["dtype"]]
    key_dim, value_dim, gate = configuration["K"], configuration["V"], configuration["gate"]
    full, bonus = configuration["features"] != "plain", configuration["features"] == "bonus"
    tokens, heads, shared = 4090, 16, (4 if full else 16)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    g = {"channel": empty(1, tokens, heads, key_dim), "head": empty(1, tokens, heads),
         "constant": empty(heads, dtype=torch.float32), "none": None}[gate]
    call = Call(
        empty(1, tokens, heads, key_dim), empty(1, tokens, shared, key_dim), empty(1, tokens, shared, value_dim), g,
        empty(3, heads, key_dim, value_dim, dtype=torch.float32) if full else None,
        empty(heads, key_dim) if bonus else None, empty(4, dtype=torch.int32) if full else None, 0.1, full, full, {})
    recorder = Recorder(kernels)
    if "forward" in passes:
        launch.forward(recorder, call, soc)
    if "backward" in passes:
        launch.backward(recorder, call, empty(1, tokens, heads, value_dim),
                        empty(3, heads, key_dim, value_dim, dtype=torch.float32) if full else None, soc)
    if "decode" in passes:
        q, k, v = (empty(1, 1, *x.shape[2:]) for x in (call.q, call.k, call.v))
        launch.decode(recorder, DecodeCall(
            q, k, v, g if g is None or g.dim() == 1 else empty(1, 1, *g.shape[2:]),
            empty(8, heads, key_dim, value_dim, dtype=torch.float32), empty(1, dtype=torch.int64) if full else None,
            call.bonus, 0.1, empty(1, 1, heads, value_dim)), soc)
    return recorder.launches
