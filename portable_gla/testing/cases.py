"""The case table: every shape, dtype, gate and layout that a backend must get right.

Tests, benchmarks and tuning read it; nothing else lists shapes. Add a case here and every backend runs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from portable_gla.problem import Device, Problem

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (F64, F32, BF16, F16)
SHORT = {F16: "f16", BF16: "bf16", F32: "f32", F64: "f64"}
GATES = ("channel", "head", "constant", "none")

REGIMES = (
    "usual",  # log-sigmoid of a normal variable: memory of one to a few tokens in every channel
    "slow",  # 1e-4 to 1e-2 nats a token: memory of the whole sequence
    "zero",  # no decay, yet a gradient
    "strong",  # up to 30 nats a token
    "extreme",  # up to 300 nats: exp(g) underflows float32 at many tokens
    "range",  # from 1e-4 to 1e4 nats, log-uniform: all of the above side by side
    "huge",  # one gate of -1e5 among small ones, in every sequence and channel
    "resets",  # one in eight is -inf
    "edges",  # -inf at the first and the last token of every 16, the sequence's own included
    "all-resets",  # -inf everywhere
    "positive",  # growth of up to 0.2 nats a token
    "growth",  # one nat a token, up to where float32 ends
    "mixed",  # both signs: each token within ±2 nats, no growth over the sequence
    "spikes",  # +25 and -30 nats at alternate tokens: products over a block overflow where the recurrence does not
)

STRIDES = (
    "contiguous",
    "fused",  # q, k, v as slices of one projection's output
    "heads-first",  # stored [B, H, T, D]
    "channels-first",  # stored [B, H, D, T]: the last dimension is not contiguous
    "stepped",  # every other element of every dimension of a larger tensor
    "offset",  # contiguous, one element past an aligned address
    "expanded",  # q, g and state repeated over the batch, v over its heads, k over its tokens, all with stride 0
)


@dataclass(frozen=True)
class Case:
    """One call, forward and backward, without its numbers: :mod:`portable_gla.testing.inputs` makes those.

    ``lengths`` are those of packed sequences; T is then their sum and B is 1. ``magnitudes`` multiply q, k and v.
    """

    name: str
    tokens: int = 40
    batch: int = 2
    q_heads: int = 2
    k_heads: int = 2
    v_heads: int = 2
    gate_heads: int = 2
    key_dim: int = 16
    value_dim: int = 24
    gate: str = "channel"
    dtype: torch.dtype = F32
    gate_dtype: torch.dtype | None = None  # None: dtype
    lengths: tuple[int, ...] | None = None
    cu_dtype: torch.dtype = torch.int32
    initial_state: str = "none"  # "each": one per sequence, "broadcast": one for all
    initial_dtype: torch.dtype | None = None  # None: float32, or float64 for float64
    final_state: bool = True
    reverse: bool = False
    bonus: bool = False
    layout: str = "BTHD"
    strides: str = "contiguous"
    regime: str = "usual"
    magnitudes: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float | None = None
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for field, allowed in (("gate", GATES), ("regime", REGIMES), ("strides", STRIDES),
                               ("layout", ("BTHD", "BHTD")), ("initial_state", ("none", "each", "broadcast"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{self.name}: {field}: expected one of {allowed}, got {getattr(self, field)!r}")
        if self.lengths is not None:
            object.__setattr__(self, "tokens", sum(self.lengths))
            object.__setattr__(self, "batch", 1)

    def __str__(self) -> str:
        return self.name

    @property
    def heads(self) -> int:
        """H, the largest head count."""
        counts = [self.q_heads, self.k_heads, self.v_heads]
        return max(counts if self.gate == "none" else [*counts, self.gate_heads])

    @property
    def sequences(self) -> int:
        """N: the number of packed sequences, or B."""
        return self.batch if self.lengths is None else len(self.lengths)

    @property
    def state_dtype(self) -> torch.dtype:
        """The final state's dtype."""
        return F64 if self.dtype == F64 else F32

    def problem(self, device: Device, *, training: bool = True) -> Problem:
        """Describe the case to planning and backends."""
        gated = self.gate != "none"
        return Problem(
            tokens=self.tokens, heads=self.heads, key_dim=self.key_dim, value_dim=self.value_dim, batch=self.batch,
            sequences=self.sequences, q_heads=self.q_heads, k_heads=self.k_heads, v_heads=self.v_heads,
            gate_heads=self.gate_heads if gated else 0, dtype=self.dtype, gate=self.gate,
            gate_dtype=(self.gate_dtype or self.dtype) if gated else None, packed=self.lengths is not None,
            initial_state=self.initial_state != "none", final_state=self.final_state, reverse=self.reverse,
            bonus=self.bonus, training=training, device=device)


def _case(name: str, *tags: str, **fields: object) -> Case:
    return replace(Case(name), tags=frozenset(tags), **fields)  # type: ignore[arg-type]


def _gates_and_dtypes() -> Iterator[Case]:
    for gate, dtype in itertools.product(GATES, DTYPES):
        yield _case(f"gate-{gate}-{SHORT[dtype]}", "quick", gate=gate, dtype=dtype, initial_state="each")
    for gate, dtype in itertools.product(GATES[:3], (BF16, F16)):
        yield _case(f"gate-{gate}-{SHORT[dtype]}-g-f32", *(["quick"] if gate == "channel" else []), gate=gate,
                    dtype=dtype, gate_dtype=F32, initial_state="each")
    for gate, dtype in itertools.product(GATES, (F32, BF16)):
        yield _case(f"wide-{gate}-{SHORT[dtype]}", gate=gate, dtype=dtype, tokens=150, key_dim=64, value_dim=64,
                    initial_state="each")


def _regimes() -> Iterator[Case]:
    gradients = {"initial_state": "each", "tokens": 70}
    for regime in REGIMES[1:]:
        for gate in GATES[:3]:
            if gate == "constant" and regime in ("mixed", "spikes"):
                continue  # a constant gate above 0 has no token that takes its growth back
            quick = ["quick"] if gate == "channel" else []
            yield _case(f"regime-{regime}-{gate}-f32", *quick, gate=gate, regime=regime, **gradients)
        for dtype in (F64, BF16):
            yield _case(f"regime-{regime}-channel-{SHORT[dtype]}", regime=regime, dtype=dtype, **gradients)
        if regime not in ("growth", "spikes"):  # which pass the range of float16
            yield _case(f"regime-{regime}-channel-f16", regime=regime, dtype=F16, **gradients,
                        magnitudes=(0.1, 0.1, 0.1) if regime == "positive" else (1.0, 1.0, 1.0))
        yield _case(f"regime-{regime}-channel-bf16-g-f32", regime=regime, dtype=BF16, gate_dtype=F32, **gradients)
        yield _case(f"regime-{regime}-bonus-f32", regime=regime, bonus=True, **gradients)
    for regime in ("resets", "huge", "spikes", "extreme"):
        yield _case(f"regime-{regime}-reverse-f32", regime=regime, reverse=True, **gradients)
        yield _case(f"regime-{regime}-packed-f32", regime=regime, lengths=(0, 33, 16, 1, 50), initial_state="each")
        yield _case(f"regime-{regime}-no-state-f32", regime=regime, tokens=33, final_state=False)


def _lengths() -> Iterator[Case]:
    for tokens in (0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129):
        quick = ["quick"] if tokens in (0, 1, 15, 16, 17, 65) else []
        yield _case(f"tokens-{tokens}", *quick, tokens=tokens, initial_state="each")
        if tokens in (0, 1, 17, 64):
            yield _case(f"tokens-{tokens}-plain", tokens=tokens, final_state=False)
            yield _case(f"tokens-{tokens}-reverse", tokens=tokens, reverse=True, initial_state="each")
            yield _case(f"tokens-{tokens}-bonus-head-bf16", tokens=tokens, gate="head", bonus=True, dtype=BF16,
                        initial_state="each")
    yield _case("tokens-1000", "large", tokens=1000, batch=1, key_dim=32, value_dim=32)
    yield _case("tokens-1000-slow", "large", tokens=1000, batch=1, regime="slow", initial_state="each")
    yield _case("tokens-1000-slow-bf16", "large", tokens=1000, batch=1, regime="slow", dtype=BF16, gate_dtype=F32)
    yield _case("tokens-1000-zero-head", "large", tokens=1000, batch=1, regime="zero", gate="head")
    yield _case("tokens-1000-range-packed", "large", lengths=(1, 600, 0, 399), regime="range", initial_state="each")
    yield _case("tokens-2100-constant", "large", tokens=2100, batch=1, q_heads=1, k_heads=1, v_heads=1, gate_heads=1,
                gate="constant", regime="slow", key_dim=8, value_dim=8)


def _dimensions() -> Iterator[Case]:
    sizes = [(1, 1), (1, 64), (3, 17), (17, 3), (64, 1), (64, 100), (100, 64), (100, 100), (128, 128), (128, 256),
             (256, 64), (17, 512), (512, 17), (1, 512), (512, 1)]
    for key_dim, value_dim in sizes:
        quick = ["quick"] if (key_dim, value_dim) in ((1, 1), (3, 17), (100, 64)) else []
        yield _case(f"dims-{key_dim}x{value_dim}", *quick, key_dim=key_dim, value_dim=value_dim, tokens=20, batch=1,
                    initial_state="each")
    for key_dim, value_dim in ((3, 17), (128, 128), (100, 256)):
        for gate, dtype in (("head", BF16), ("channel", F16), ("none", F32)):
            yield _case(f"dims-{key_dim}x{value_dim}-{gate}-{SHORT[dtype]}", gate=gate, dtype=dtype, key_dim=key_dim,
                        value_dim=value_dim, tokens=20, batch=1, initial_state="each")
    one = {"q_heads": 1, "k_heads": 1, "v_heads": 1, "gate_heads": 1, "batch": 1, "tokens": 18}
    yield _case("dims-512x512", "large", key_dim=512, value_dim=512, initial_state="each", **one)
    yield _case("dims-512x512-bf16", "large", key_dim=512, value_dim=512, dtype=BF16, bonus=True, **one)
    yield _case("dims-600x520", "large", key_dim=600, value_dim=520, gate="head", **one)


def _head_counts() -> Iterator[Case]:
    counts = {"q": (1, 4, 4, 4), "k": (4, 2, 4, 4), "v": (4, 4, 1, 4), "gate": (4, 4, 4, 2), "kv": (4, 1, 1, 4),
              "grouped": (6, 2, 2, 3), "mixed": (1, 2, 4, 2), "gate-most": (2, 2, 2, 4), "value-most": (2, 2, 4, 2),
              "single": (1, 1, 1, 1)}
    for name, (q, k, v, g) in counts.items():
        for gate in GATES:
            quick = ["quick"] if gate == "channel" and name in ("grouped", "mixed", "gate-most") else []
            yield _case(f"heads-{name}-{gate}", *quick, q_heads=q, k_heads=k, v_heads=v, gate_heads=g, gate=gate,
                        key_dim=8, value_dim=12, tokens=20, initial_state="each")
    for dtype in (F64, BF16, F16):
        yield _case(f"heads-grouped-bonus-{SHORT[dtype]}", q_heads=6, k_heads=2, v_heads=3, gate_heads=1, dtype=dtype,
                    bonus=True, initial_state="broadcast")


def _packed() -> Iterator[Case]:
    lengths = {"one": (37,), "two": (16, 24), "empty-first": (0, 21, 19), "empty-middle": (20, 0, 0, 17),
               "empty-last": (5, 30, 0), "all-empty": (0, 0, 0), "no-sequence": (), "ones": (1,) * 9,
               "many": (3, 64, 1, 0, 17, 65, 2)}
    for name, each in lengths.items():
        quick = ["quick"] if name in ("empty-first", "empty-middle", "all-empty", "no-sequence") else []
        yield _case(f"packed-{name}", *quick, lengths=each, initial_state="each")
        yield _case(f"packed-{name}-plain", lengths=each, final_state=False, cu_dtype=torch.int64)
        yield _case(f"packed-{name}-reverse-bonus", lengths=each, reverse=True, bonus=True, initial_state="broadcast")
    for gate, dtype in itertools.product(GATES, DTYPES):
        yield _case(f"packed-many-{gate}-{SHORT[dtype]}", lengths=lengths["many"], gate=gate, dtype=dtype,
                    initial_state="each", cu_dtype=torch.int64)
    yield _case("packed-all-empty-grouped-heads", "quick", lengths=(0, 0), q_heads=4, k_heads=1, v_heads=2,
                gate_heads=2, bonus=True, initial_state="broadcast")
    yield _case("packed-grouped-heads", lengths=(0, 30, 0, 11), q_heads=4, k_heads=1, v_heads=2, gate_heads=2,
                initial_state="broadcast", bonus=True)


def _states() -> Iterator[Case]:
    for state, dtype in itertools.product(("none", "each", "broadcast"), (F32, BF16)):
        for final in (True, False):
            yield _case(f"state-{state}-{'final' if final else 'no-final'}-{SHORT[dtype]}", initial_state=state,
                        final_state=final, dtype=dtype, batch=3)
    for initial, dtype in ((F16, F32), (BF16, F32), (F64, F32), (BF16, BF16), (F16, F16), (F64, BF16), (F32, F64)):
        yield _case(f"state-{SHORT[initial]}-inputs-{SHORT[dtype]}", *(["quick"] if dtype == BF16 else []),
                    initial_dtype=initial, dtype=dtype, initial_state="each")


def _directions_and_bonus() -> Iterator[Case]:
    for gate, dtype in itertools.product(GATES, (F64, F32, BF16, F16)):
        quick = ["quick"] if dtype == F32 else []
        yield _case(f"reverse-{gate}-{SHORT[dtype]}", *quick, gate=gate, dtype=dtype, reverse=True,
                    initial_state="each")
        yield _case(f"bonus-{gate}-{SHORT[dtype]}", *quick, gate=gate, dtype=dtype, bonus=True, initial_state="each")
    yield _case("reverse-bonus", "quick", reverse=True, bonus=True, initial_state="broadcast")
    yield _case("reverse-bonus-tokens-129", reverse=True, bonus=True, tokens=129, gate="head", initial_state="each")


def _memory() -> Iterator[Case]:
    for strides in STRIDES[1:]:
        yield _case(f"strides-{strides}", "quick", strides=strides, initial_state="each", bonus=True)
        yield _case(f"strides-{strides}-bf16-head", strides=strides, gate="head", dtype=BF16, initial_state="each")
        yield _case(f"strides-{strides}-f16-dims-64x128", strides=strides, dtype=F16, gate_dtype=F32, key_dim=64,
                    value_dim=128)
    for gate in GATES:
        yield _case(f"layout-bhtd-{gate}", *(["quick"] if gate == "channel" else []), layout="BHTD", gate=gate,
                    initial_state="each")
    yield _case("layout-bhtd-packed-reverse", layout="BHTD", lengths=(0, 20, 13), reverse=True, k_heads=1, v_heads=1)


def _magnitudes() -> Iterator[Case]:
    for index, name in enumerate("qkv"):
        for size in (1e-3, 1e3):
            magnitudes = tuple(size if i == index else 1.0 for i in range(3))
            for dtype in (F32, BF16):
                yield _case(f"magnitude-{name}-{size:g}-{SHORT[dtype]}", magnitudes=magnitudes, dtype=dtype,
                            initial_state="each")
    yield _case("magnitude-all-1e3-f32", magnitudes=(1e3, 1e3, 1e3), initial_state="each")
    yield _case("magnitude-all-1e-3-f32", magnitudes=(1e-3, 1e-3, 1e-3), initial_state="each")
    yield _case("magnitude-all-1e-2-f16", magnitudes=(1e-2, 1e-2, 1e-2), dtype=F16)
    yield _case("magnitude-strong-1e3-f32", magnitudes=(1e3, 1e3, 1e3), regime="extreme", initial_state="each")
    for scale in (1.0, -0.3, 0.0, 1e-6):
        yield _case(f"scale-{scale:g}", scale=scale, initial_state="each", bonus=True)
    for batch in (0, 1, 5):
        yield _case(f"batch-{batch}", *(["quick"] if batch == 0 else []), batch=batch, initial_state="each")
    yield _case("batch-0-broadcast", batch=0, initial_state="broadcast", bonus=True, gate="constant")


def _benchmarks() -> Iterator[Case]:
    four = {"q_heads": 4, "k_heads": 4, "v_heads": 4, "gate_heads": 4, "batch": 1, "key_dim": 128, "value_dim": 128,
            "final_state": False}
    for tokens in (256, 1024, 4096, 16384):
        yield _case(f"bench-{tokens}", "bench", tokens=tokens, **four)
        yield _case(f"bench-{tokens}-bf16", "bench", tokens=tokens, dtype=BF16, **four)
    for gate in GATES[1:]:
        yield _case(f"bench-4096-{gate}", "bench", tokens=4096, gate=gate, **four)
    yield _case("bench-4096-64x64", "bench", **{**four, "tokens": 4096, "key_dim": 64, "value_dim": 64})
    yield _case("bench-packed", "bench", **{**four, "lengths": (1000, 2500, 96, 0, 500)})
    yield _case("bench-one-head", "bench", **{**four, "tokens": 4096, "q_heads": 1, "k_heads": 1, "v_heads": 1,
                                              "gate_heads": 1})


def _hardware() -> Iterator[Case]:
    """Shapes that real devices are measured on, as ``hardware-BxTxHxK`` (and ``xV`` where V differs from K).

    Beside "hardware" a case has the tag of what it is for, "shape" (the targets), "sweep" (time against T) or "decode";
    "brief" marks the few that a short run takes.
    """

    def shape(kind: str, batch: int, tokens: int, heads: int, key_dim: int, value_dim: int = 0, gate: str = "channel",
              brief: bool = False) -> Case:
        name = "x".join(map(str, filter(None, (batch, tokens, heads, key_dim, value_dim))))
        prefix = "hardware-decode" if kind == "decode" else "hardware"
        return _case(f"{prefix}-{name}{'' if gate == 'channel' else f'-{gate}'}", "hardware", kind,
                     *(["brief"] if brief else []), batch=batch, tokens=tokens, q_heads=heads, k_heads=heads,
                     v_heads=heads, gate_heads=heads, key_dim=key_dim, value_dim=value_dim or key_dim, gate=gate,
                     dtype=BF16, initial_state="each" if kind == "decode" else "none", final_state=kind == "decode")

    for batch, tokens, heads, dim in ((1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128), (4, 4096, 64, 128),
                                      (8, 1024, 8, 64), (8, 2048, 32, 256)):
        brief = batch * tokens * heads * dim < 2**24 + 1
        yield shape("shape", batch, tokens, heads, dim, brief=brief)
        yield shape("shape", batch, tokens, heads, dim, gate="head", brief=brief)
    # B · T = 131,072 either way: many sequences, and one that leaves only its 4 heads to run side by side.
    yield shape("shape", 32, 4096, 4, 256, 512)
    yield shape("shape", 1, 131072, 4, 256, 512)
    for tokens in (512, 1024, 2048, 4096, 8192):  # 16,384 is among the shapes above
        yield shape("sweep", 32768 // tokens, tokens, 16, 128)
    yield shape("decode", 128, 1, 32, 128)  # states of 256 MiB: memory's speed
    yield shape("decode", 8, 1, 16, 128, brief=True)  # of 8 MiB: what a call costs


CASES: tuple[Case, ...] = tuple(itertools.chain(
    _gates_and_dtypes(), _regimes(), _lengths(), _dimensions(), _head_counts(), _packed(), _states(),
    _directions_and_bonus(), _memory(), _magnitudes(), _benchmarks(), _hardware()))
"""Every case. ``bench`` and ``hardware`` cases are for timing (the oracle is too slow for them); all others are for
conformance."""

CONFORMANCE: tuple[Case, ...] = tuple(case for case in CASES if not {"bench", "hardware"} & case.tags)


def select(tag: str) -> tuple[Case, ...]:
    """Return the cases with a tag: ``quick`` (small, for emulators), ``large`` (long runs), ``bench``, ``hardware``."""
    return tuple(case for case in CASES if tag in case.tags)


def named(name: str) -> Case:
    """Return the case of that name."""
    return next(case for case in CASES if case.name == name)
