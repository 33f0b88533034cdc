"""Cases that nobody thought of: hypothesis draws the shapes, the gates and the way in which tensors lie."""

from __future__ import annotations

import hypothesis
import torch
from hypothesis import strategies as st

from portable_gla.testing.cases import DTYPES, STRIDES, Case
from portable_gla.testing.checks import CHECKS
from portable_gla.testing.running import Target

REGIMES = ("usual", "slow", "zero", "strong", "extreme", "range", "huge", "resets", "edges", "all-resets", "positive")
DIMENSIONS = st.one_of(st.integers(1, 40), st.sampled_from((64, 65, 96, 128, 192)))


@st.composite
def drawn_cases(draw: st.DrawFn) -> Case:
    heads = draw(st.sampled_from((1, 2, 3, 4, 6)))
    divisors = st.sampled_from([count for count in range(1, heads + 1) if heads % count == 0])
    dtype = draw(st.sampled_from(DTYPES))
    packed = draw(st.booleans())
    lengths = st.lists(st.one_of(st.integers(0, 40), st.sampled_from((0, 16, 64, 65))), max_size=6)
    layout = draw(st.sampled_from(("BTHD", "BTHD", "BHTD")))
    return Case(
        "drawn", tokens=draw(st.integers(0, 90)), batch=draw(st.integers(0, 3)), q_heads=draw(divisors),
        k_heads=draw(divisors), v_heads=heads, gate_heads=draw(divisors), key_dim=draw(DIMENSIONS),
        value_dim=draw(DIMENSIONS), gate=draw(st.sampled_from(("channel", "channel", "head", "constant", "none"))),
        dtype=dtype, gate_dtype=draw(st.sampled_from((None, torch.float32))),
        lengths=tuple(draw(lengths)) if packed else None, cu_dtype=draw(st.sampled_from((torch.int32, torch.int64))),
        initial_state=draw(st.sampled_from(("none", "each", "broadcast"))),
        initial_dtype=draw(st.sampled_from((None, *DTYPES))), final_state=draw(st.booleans()),
        reverse=draw(st.booleans()), bonus=draw(st.booleans()), layout=layout,
        strides=draw(st.sampled_from(STRIDES)) if layout == "BTHD" else "contiguous",
        regime=draw(st.sampled_from(REGIMES)),
        magnitudes=(1.0, 1.0, 1.0) if dtype != torch.float16 else (0.1, 0.1, 0.1),
        tags=frozenset({"quick"}))


def test_any_case(target: Target, seed: int) -> None:
    checks = ("within_budget", "batch_invariant", "strided", "segmented")

    # To shrink a case takes many minutes in an emulator; the drawn one says as much.
    phases = [phase for phase in hypothesis.Phase if phase != hypothesis.Phase.shrink or not target.emulated]

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=10 if target.emulated else 60, deadline=None, database=None, phases=phases,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=drawn_cases(), numbers=st.integers(0, 2**31))
    def holds(case: Case, numbers: int) -> None:
        for name in checks:
            if CHECKS[name].applies(case):
                failed = [str(row) for row in CHECKS[name](target, case, numbers) if not row.ok]
                assert not failed, "\n".join([name, *failed])

    holds()
