"""The plan's figures: bytes and launches held against what the emulator counts, and what they predict of a V100."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from portable_gla_volta import counting, cutting, schedule
from portable_gla_volta.counting import CHUNK, Kind, Work
from portable_gla_volta.emulator import EmulatorRunner, counts, options

import portable_gla
from portable_gla import devices
from portable_gla.cost import cost
from portable_gla.problem import Problem
from portable_gla.segments import Segments
from portable_gla.testing import cases, emulate, inputs
from portable_gla.testing.cases import Case
from portable_gla.testing.running import Target, run

V100 = devices.named("v100")
BUDGETS = {1: 1.3, 2: 1.8}
"""Of the forward pass's bytes, in multiples of the compulsory ones, by segments."""


@pytest.fixture
def as_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are counted of kernels as they are built anyway: only bank conflicts want loops unrolled."""
    monkeypatch.setattr(EmulatorRunner, "unrolls", False)


def counted(case: Case, segments: int) -> list[counts.Launch]:
    with options(count=True) as launches:
        run(Target("volta", emulated=True), inputs.make(case, 1), segments=segments)
    return list(launches)


def planned(case: Case, segments: int) -> portable_gla.Plan:
    with emulate("volta", segments=segments):
        return portable_gla.plan(case.problem(devices.of(torch.device("cpu"))), backend="volta")


def moved(launches: list[counts.Launch]) -> int:
    return sum(one.loaded_once + one.stored_once for one in launches)


# K and V to 32: few kernels, and those of the conformance suite's small cases.
MODELLED = [
    Case("plain", batch=2, tokens=300, key_dim=32, value_dim=24, dtype=torch.float16, final_state=False),
    Case("states", batch=1, tokens=200, key_dim=32, value_dim=32, dtype=torch.float16, gate_dtype=torch.float32,
         initial_state="each"),
    Case("shared", batch=1, tokens=200, q_heads=4, k_heads=2, v_heads=1, gate_heads=4, key_dim=20, value_dim=32,
         bonus=True, dtype=torch.float16),
    Case("head", batch=1, tokens=300, gate="head", gate_heads=1, key_dim=32, initial_state="broadcast",
         dtype=torch.float16),
    Case("constant", batch=2, tokens=130, gate="constant", reverse=True, key_dim=32, value_dim=32,
         dtype=torch.float16),
    Case("single", batch=1, tokens=200, key_dim=32, value_dim=32),
]


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("case", MODELLED, ids=str)
def test_the_plan_predicts_launches_and_bytes(as_built: None, case: Case, segments: int) -> None:
    launches, found = counted(case, segments), planned(case, segments).schedule
    assert found is not None
    assert len(launches) == found.launches_forward + found.launches_backward
    predicted = found.bytes_forward + found.bytes_backward
    assert predicted == pytest.approx(moved(launches), rel=0.05), "\n".join(
        f"{one.kernel} {one.loaded_once} {one.stored_once}" for one in launches)


@pytest.mark.parametrize("dim", [32, 128])
@pytest.mark.parametrize("segments", BUDGETS)
def test_the_forward_passs_bytes_as_counted(as_built: None, segments: int, dim: int) -> None:
    case = Case("budget", batch=1, tokens=4096, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, key_dim=dim,
                value_dim=dim, dtype=torch.float16, final_state=False)
    problem = case.problem(devices.of(torch.device("cpu")), training=False)
    with options(count=True) as launches, emulate("volta", segments=segments), torch.no_grad():
        given = inputs.make(case, 1)
        portable_gla.attention(**{name: value.detach() for name, value in inputs.tensors(given)})
    assert moved(list(launches)) <= BUDGETS[segments] * cost(problem).compulsory_forward


@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("segments", BUDGETS)
def test_the_forward_passs_bytes_as_modelled(dim: int, segments: int) -> None:
    problem = Problem(tokens=4096, heads=4, key_dim=dim, value_dim=dim, dtype=torch.float16, device=V100,
                      pins=(("segments", segments),))
    found = portable_gla.plan(problem, backend="volta")
    assert found.schedule is not None
    assert found.schedule.bytes_forward <= BUDGETS[segments] * found.cost.compulsory_forward


HEADS = {"own": (4, 4, 4, 4), "one key": (4, 1, 1, 4), "one value": (4, 4, 1, 1), "one query": (1, 4, 4, 4),
         "one of both": (1, 1, 4, 4)}
"""Of q, k, v and g."""


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("dtype", "gate_dtype"), [(torch.float16, torch.float16), (torch.float16, torch.float32),
                                                   (torch.float32, torch.float32)])
@pytest.mark.parametrize("gate", ["channel", "head", "constant", "none"])
def test_no_choice_of_segments_passes_the_bytes(gate: str, dtype: torch.dtype, gate_dtype: torch.dtype,
                                                heads: str) -> None:
    """As modelled, at most 1.8 times the compulsory bytes, however few the heads and whatever the length."""
    names = ("q_heads", "k_heads", "v_heads", "gate_heads")
    several = 0
    for key_dim, value_dim, tokens, batch, edges, packed in itertools.product(
            (8, 33, 64, 128, 200, 256), (8, 33, 64, 128, 256), (300, 1281, 2700, 5000, 20000, 131072), (1, 3),
            (False, True), (False, True)):
        if packed and batch > 1:
            continue
        problem = Problem(tokens=tokens, heads=4, key_dim=key_dim, value_dim=value_dim, batch=batch, dtype=dtype,
                          gate=gate, gate_dtype=gate_dtype, initial_state=edges, final_state=edges, device=V100,
                          packed=packed, sequences=batch, **dict(zip(names, HEADS[heads], strict=True)))
        cut = cutting.choose(cutting.of_problem(problem), 80, 0)
        bytes_ = sum(one.loaded + one.stored for one in schedule.Model(problem, cut).forward())
        assert bytes_ <= 1.8 * cost(problem).compulsory_forward, (problem, cut)
        several += cut.several
    assert several  # it is no test of uncut calls


@pytest.mark.parametrize(("key_dim", "value_dim", "gate", "lengths"), [
    (32, 32, "channel", ()), (32, 16, "head", ()), (48, 20, "none", ()), (32, 32, "channel", (700, 100, 1500, 20))])
def test_the_shortest_segments_as_counted(as_built: None, monkeypatch: pytest.MonkeyPatch, key_dim: int, value_dim: int,
                                          gate: str, lengths: tuple[int, ...]) -> None:
    """One head, which a whole chip would cut as often as the bytes allow; packed sequences by their own lengths."""
    case = Case("shortest", batch=1, tokens=sum(lengths) or 2300, lengths=lengths or None, q_heads=1, k_heads=1,
                v_heads=1, gate_heads=1, key_dim=key_dim, value_dim=value_dim, gate=gate, dtype=torch.float16,
                gate_dtype=torch.float32, final_state=False)
    monkeypatch.setattr("portable_gla_volta.backend.cutting.choose",
                        lambda sizes, cores, pinned, choose=cutting.choose: choose(sizes, 80, pinned))
    with options(count=True) as launches, emulate("volta"), torch.no_grad():
        portable_gla.attention(**{name: value.detach() for name, value in inputs.tensors(inputs.make(case, 1))})
    assert [one.kernel for one in launches] == ["states", "scan", "forward"]
    problem = case.problem(devices.of(torch.device("cpu")), training=False)
    assert moved(list(launches)) <= 1.8 * cost(problem).compulsory_forward


def test_a_batch_that_does_not_fill_the_chip_is_cut_and_stays_within_its_bytes() -> None:
    for dim in (64, 128, 256):
        for tokens in (16384, 65536, 131072):
            found = portable_gla.plan(Problem(tokens=tokens, heads=4, key_dim=dim, value_dim=dim, dtype=torch.float16,
                                              device=V100), backend="volta")
            assert found.schedule is not None and found.schedule.tiles["segments"] > 1
            assert found.schedule.bytes_forward <= 1.8 * found.cost.compulsory_forward, (dim, tokens)


def test_every_kind_of_call_is_counted() -> None:
    assert set(counting.table()) == {str(kind) for kind in counting.kinds()}


def test_the_table_of_counts_agrees_with_the_sources() -> None:
    assert not counting.stale(), "run python -m portable_gla_volta.counting"


@pytest.mark.parametrize("kind", [Kind(32, 32, True)], ids=str)
def test_what_the_table_says_is_what_is_counted(kind: Kind) -> None:
    """All but the instructions, for which all PTX would be translated: see test_volta_ptx.py."""
    found = counting.count(kind, instructions=False)
    assert found == {name: work._replace(instructions=0) for name, work in counting.table()[str(kind)].items()}


def test_a_pass_is_its_chunks() -> None:
    """Twice the tokens or heads are twice the work; of a segmented pass the walks over segments come on top."""
    problem = Problem(tokens=640, heads=2, key_dim=64, value_dim=64, dtype=torch.float16, training=True, device=V100)
    whole, several = Segments(640, False), Segments(320, True)
    row = counting.table()["64x64 channel"]
    forward = schedule.work(problem, whole, False)
    assert forward == Work(*(2 * 640 // CHUNK * each for each in row["forward"]))
    assert schedule.work(dataclasses.replace(problem, heads=4), whole, False) == Work(*(2 * each for each in forward))
    cut = schedule.work(problem, several, False)
    assert cut is not None and forward is not None
    assert cut.mma - forward.mma == 2 * 640 // CHUNK * row["states"].mma // 2
    backward = schedule.work(problem, whole, True)
    assert backward is not None
    assert backward.wavefronts == 2 * 640 // CHUNK * (row["gradients"].wavefronts + 2 * row["states"].wavefronts)


@pytest.mark.parametrize(("dim", "floor"), [(64, 0.85), (128, 1.71)])
def test_the_plan_states_the_floor_and_what_bounds_a_v100(dim: int, floor: float) -> None:
    """With gates in float32; bytes, wavefronts, tensor-core steps, and which of them is the longest."""
    found = portable_gla.plan(Problem(tokens=4096, heads=160, key_dim=dim, value_dim=dim, dtype=torch.float16,
                                      gate_dtype=torch.float32, device=V100), backend="volta")
    assert found.cost.floor_forward is not None
    assert found.cost.floor_forward / found.problem.token_heads * 1e9 == pytest.approx(floor, rel=0.005)
    text = str(found)
    for words in ("predicted, not measured: forward ns per token-head: DRAM", "shared memory", "tensor cores",
                  "bound by", "wavefronts of shared memory", "tensor-core steps", f"floor {floor}"):
        assert words in text, text


SHARED = {(32, True): 0.27, (64, True): 0.36, (128, True): 0.33, (256, True): 0.82,
          (32, False): 0.43, (64, False): 0.52, (128, False): 0.44, (256, False): 1.0}
"""Time in shared memory over DRAM's, at most, of a forward pass by (K = V, gates per channel); gates in float32."""
TENSOR = {(256, False): 1.13}
"""Time in the tensor cores over time in DRAM, where it is not below 1: 4,096 of 4,992 mma are of states."""


@pytest.mark.parametrize(("dim", "channel"), SHARED)
def test_what_shared_memory_takes_beside_dram(dim: int, channel: bool) -> None:
    problem = Problem(tokens=4096, heads=160, key_dim=dim, value_dim=dim, dtype=torch.float16, training=True,
                      gate="channel" if channel else "head", gate_dtype=torch.float32, device=V100)
    found = portable_gla.plan(problem, backend="volta").schedule
    assert found is not None
    for backward, moved_ in ((False, found.bytes_forward), (True, found.bytes_backward)):
        bound = schedule.bound(problem, moved_, schedule.work(problem, Segments(4096, False), backward), 160, 0)
        assert bound is not None
        ratio = bound.seconds["shared memory"] / bound.seconds["DRAM"]
        assert ratio <= (0.7 if backward else SHARED[dim, channel])
        most = 1.0 if backward else TENSOR.get((dim, channel), 1.0)
        assert bound.seconds["tensor cores"] < most * bound.seconds["DRAM"]


STRONG = {32: 0.32, 64: 0.41, 128: 0.38, 256: 0.99}
"""As ``SHARED``, where every block of 16 positions goes by levels."""


@pytest.mark.parametrize("dim", STRONG)
def test_what_shared_memory_takes_where_gates_are_strong(dim: int) -> None:
    found = counting.count(Kind(dim, dim, True), instructions=False, nats=2.0)["forward"]
    assert found.mma > counting.table()[str(Kind(dim, dim, True))]["forward"].mma
    problem = Problem(tokens=CHUNK, heads=1, key_dim=dim, value_dim=dim, dtype=torch.float16,
                      gate_dtype=torch.float32, device=V100)
    bound = schedule.bound(problem, CHUNK * 12 * dim, found, 80, 0)
    assert bound is not None
    assert bound.seconds["shared memory"] <= STRONG[dim] * bound.seconds["DRAM"]


def test_every_access_to_shared_memory_is_near_the_least_possible() -> None:
    """Within 5 %, as counted, of a whole forward and a whole backward pass."""
    for kind, row in counting.table().items():
        backward = [a + 2 * b for a, b in zip(row["gradients"], row["states"], strict=True)]
        assert row["forward"].wavefronts <= 1.05 * row["forward"].least, kind
        assert backward[0] <= 1.05 * backward[1], kind


def test_float32_says_what_bounds_it() -> None:
    text = str(portable_gla.plan(Problem(tokens=4096, heads=160, key_dim=128, value_dim=128, device=V100)))
    assert "multiply-adds" in text and "wavefronts" not in text


def test_a_turing_has_half_the_path_to_shared_memory() -> None:
    inside = Work(1000, 1000, 100, 100, 1000)
    problem = Problem(tokens=4096, heads=160, key_dim=64, value_dim=64, dtype=torch.float16, device=V100)
    volta = schedule.bound(problem, 10**6, inside, 1000, 0)
    turing = schedule.bound(dataclasses.replace(problem, device=devices.named("t4")), 10**6, inside, 1000, 0)
    assert volta is not None and turing is not None
    assert volta.seconds["shared memory"] == pytest.approx(1000 / (80 * 1.526e9), rel=0.001)
    assert turing.seconds["shared memory"] == pytest.approx(2 * 1000 / (40 * 1.587e9), rel=0.001)
    assert schedule.bound(dataclasses.replace(problem, device=devices.named("h200")), 1, inside, 1, 0) is None


def test_every_shape_of_the_case_table_is_planned() -> None:
    for case in cases.CASES:
        if case.dtype in (torch.float16, torch.float32) and max(case.key_dim, case.value_dim) <= 256:
            assert portable_gla.plan(case.problem(V100), backend="volta").schedule is not None, case.name
