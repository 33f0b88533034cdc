"""Every malformed call is refused with a message that names the argument, what was expected and what came."""

import math

import pytest
import torch

import portable_gla

B, T, H, K, V = 2, 6, 4, 3, 5
DEFAULT = object()


def tensors(**changes):
    given = {"q": torch.randn(B, T, H, K), "k": torch.randn(B, T, H, K), "v": torch.randn(B, T, H, V),
             "g": -torch.rand(B, T, H, K)}
    return {**given, **changes}


def packed(**changes):
    return {name: x[:1] if isinstance(x, torch.Tensor) else x for name, x in tensors().items()} | changes


def half(x):
    return x.to(torch.float16)


MALFORMED = {
    "q no tensor": (tensors(q=[1.0]), TypeError, r"q: expected a tensor \[B, T, Hq, K\], got list"),
    "q of rank 3": (tensors(q=torch.randn(B, T, K)), ValueError, r"q: expected \[B, T, Hq, K\], got shape \[2, 6, 3\]"),
    "q of integers": (
        tensors(q=torch.ones(B, T, H, K, dtype=torch.int32)),
        TypeError, "q: expected dtype float16.*got int32"),
    "q sparse": (tensors(q=torch.zeros(B, T, H, K).to_sparse()), TypeError, "q: expected a dense tensor, got layout"),
    "k of another dtype": (
        tensors(k=half(torch.randn(B, T, H, K))),
        TypeError, r"k: expected dtype float32 \(as q\), got float16"),
    "v of another dtype": (
        tensors(v=torch.randn(B, T, H, V).double()),
        TypeError, r"v: expected dtype float32 \(as q\), got float64"),
    "g of another dtype": (
        tensors(g=half(-torch.rand(B, T, H, K))),
        TypeError, r"g: expected dtype float32.*got float16"),
    "k of another T": (
        tensors(k=torch.randn(B, T + 1, H, K)),
        ValueError, r"k: expected T = 6 as in q, got shape \[2, 7, 4, 3\]"),
    "v of another B": (
        tensors(v=torch.randn(1, T, H, V)),
        ValueError, r"v: expected B = 2 as in q, got shape \[1, 6, 4, 5\]"),
    "k of another K": (tensors(k=torch.randn(B, T, H, K + 1)), ValueError, r"k: expected K = 3 as in q"),
    "g of another K": (tensors(g=-torch.rand(B, T, H, K + 1)), ValueError, r"g: expected K = 3 as in q"),
    "g of rank 2": (
        tensors(g=-torch.rand(B, T)),
        ValueError, r"g: expected \[B, T, Hg, K\], \[B, T, Hg\] or \[Hg\], got shape"),
    "heads that do not divide": (
        tensors(k=torch.randn(B, T, 3, K)),
        ValueError, "k: expected a head count that divides H = 4, the largest, got 3"),
    "gates that do not divide": (tensors(g=-torch.rand(3)), ValueError, "g: expected a head count that divides H = 4"),
    "no heads": (tensors(q=torch.randn(B, T, 0, K)), ValueError, "q: expected a head count"),
    "no channels": (tensors(v=torch.randn(B, T, H, 0)), ValueError, "v: expected V of 1 or more"),
    "k elsewhere": (
        tensors(k=torch.randn(B, T, H, K, device="meta")),
        ValueError, "k: expected on q's device cpu, got meta; nothing is moved"),
    **{f"{name} elsewhere": (tensors(**{name: x.to("meta")}), ValueError,
                             f"{name}: expected on q's device cpu, got meta; nothing is moved")
       for name, x in {"v": torch.randn(B, T, H, V), "g": -torch.rand(B, T, H), "bonus": torch.randn(H, K),
                       "initial_state": torch.randn(1, H, K, V)}.items()},
    "cu_seqlens elsewhere": (
        packed(cu_seqlens=torch.tensor([0, T], device="meta")),
        ValueError, "cu_seqlens: expected on q's device cpu, got meta"),
    "layout": (tensors(layout="TBHD"), ValueError, r"layout: expected one of \('BTHD', 'BHTD'\), got 'TBHD'"),
    "layout mixed up": (tensors(layout="BHTD", v=torch.randn(B, T, H + 1, V)), ValueError, "v: expected T = 4 as in q"),
    "unknown backend": (tensors(backend="warp"), ValueError, "backend: expected one of .*eager.*, got 'warp'"),
    "backend no name": (tensors(backend=3), TypeError, "backend: expected a backend's name or None, got int"),
    "scale": (tensors(scale="1"), TypeError, "scale: expected a number or None, got str"),
    "scale a tensor": (tensors(scale=torch.ones(1)), TypeError, "scale: expected a number or None, got Tensor"),
    "bonus shape": (
        tensors(bonus=torch.randn(K, H)),
        ValueError, r"bonus: expected shape \[4, 3\] \(\[H, K\]\), got \[3, 4\]"),
    "bonus rank": (tensors(bonus=torch.randn(H)), ValueError, r"bonus: expected \[H, K\], got shape \[4\]"),
    "bonus dtype": (tensors(bonus=torch.randn(H, K).double()), TypeError, "bonus: expected dtype float32.*got float64"),
    "state rank": (
        tensors(initial_state=torch.randn(H, K, V)),
        ValueError, r"initial_state: expected \[N or 1, H, K, V\]"),
    "state shape": (
        tensors(initial_state=torch.randn(B, H, V, K)),
        ValueError, r"initial_state: expected shape \[2, 4, 3, 5\] or \[1, 4, 3, 5\].*got \[2, 4, 5, 3\]"),
    "state count": (tensors(initial_state=torch.randn(3, H, K, V)), ValueError, r"initial_state: expected shape \[2, "),
    "state dtype": (
        tensors(initial_state=torch.ones(B, H, K, V, dtype=torch.int64)),
        TypeError, "initial_state: expected dtype"),
    "packed with B = 2": (
        tensors(cu_seqlens=torch.tensor([0, T])),
        ValueError, "cu_seqlens: expected B = 1 for packed sequences, got B = 2"),
    "cu_seqlens of floats": (
        packed(cu_seqlens=torch.tensor([0.0, T])),
        TypeError, "cu_seqlens: expected dtype int32, int64, got float32"),
    "cu_seqlens of rank 2": (packed(cu_seqlens=torch.tensor([[0, T]])), ValueError, r"cu_seqlens: expected \[N \+ 1\]"),
    "cu_seqlens empty": (
        packed(cu_seqlens=torch.tensor([], dtype=torch.int64)),
        ValueError, r"cu_seqlens: expected N \+ 1 >= 1 entries"),
    "cu_seqlens a list": (packed(cu_seqlens=[0, T]), TypeError, "cu_seqlens: expected a tensor"),
    "state of a pack": (
        packed(cu_seqlens=torch.tensor([0, 2, T]), initial_state=torch.randn(3, H, K, V)),
        ValueError, r"initial_state: expected shape \[2, "),
}

# Found when the call runs: a plan reads no values.
WRONG_VALUES = {
    "cu_seqlens falling": (
        packed(cu_seqlens=torch.tensor([0, 4, 3, T])),
        ValueError, "cu_seqlens: expected no falling entry, got 4 then 3 at index 2"),
    "cu_seqlens too short": (
        packed(cu_seqlens=torch.tensor([0, T - 1])),
        ValueError, "cu_seqlens: expected to end at T = 6, got 5"),
    "cu_seqlens too long": (
        packed(cu_seqlens=torch.tensor([0, T + 1])),
        ValueError, "cu_seqlens: expected to end at T = 6, got 7"),
    "cu_seqlens late": (
        packed(cu_seqlens=torch.tensor([1, T])),
        ValueError, "cu_seqlens: expected to start at 0, got 1"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), [*MALFORMED.values(), *WRONG_VALUES.values()],
                         ids=[*MALFORMED, *WRONG_VALUES])
def test_attention_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        portable_gla.attention(**arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), MALFORMED.values(), ids=MALFORMED)
def test_plan_refuses_the_same(arguments, error, message):
    with pytest.raises(error, match=message):
        portable_gla.plan(**arguments)


def test_unknown_keyword():
    with pytest.raises(TypeError, match="chunk_size"):
        portable_gla.attention(**tensors(chunk_size=64))


def test_refusals_hold_while_tracing():
    compiled = torch.compile(portable_gla.attention, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="k: expected K = 3 as in q"):
        compiled(**tensors(k=torch.randn(B, T, H, K + 1)))


def step(**changes):
    given = {"q": torch.randn(B, 1, H, K), "k": torch.randn(B, 1, H, K), "v": torch.randn(B, 1, H, V),
             "g": -torch.rand(B, 1, H, K), "state": torch.zeros(B, H, K, V)}
    return {**given, **changes}


MALFORMED_STEPS = {
    "state shape": (step(state=torch.zeros(B, H, V, K)), ValueError, r"state: expected shape \['P', 4, 3, 5\]"),
    "state rank": (step(state=torch.zeros(H, K, V)), ValueError, r"state: expected \[P, H, K, V\]"),
    "state dtype": (step(state=torch.zeros(B, H, K, V, dtype=torch.int8)), TypeError, "state: expected dtype"),
    "pool without slots": (
        step(state=torch.zeros(7, H, K, V)),
        ValueError, "state: expected P = B = 2 rows without slots, got 7"),
    "slots count": (step(slots=torch.tensor([0])), ValueError, "slots: expected B = 2 entries, got 1"),
    "slots dtype": (step(slots=torch.tensor([0.0, 1.0])), TypeError, "slots: expected dtype int32, int64"),
    "slots too large": (
        step(slots=torch.tensor([0, 2])),
        ValueError, "slots: expected −1 or a row of the state pool below P = 2, got 2"),
    "slots too small": (step(slots=torch.tensor([0, -2])), ValueError, "slots: expected −1 or a row"),
    "slots twice": (
        step(slots=torch.tensor([1, 1])),
        ValueError, "slots: expected every row at most once, got 1 twice"),
    "out shape": (step(out=torch.zeros(B, 1, H, K)), ValueError, r"out: expected shape \[2, 1, 4, 5\]"),
    "out dtype": (step(out=half(torch.zeros(B, 1, H, V))), TypeError, r"out: expected dtype float32 \(as q\)"),
    "state elsewhere": (
        step(state=torch.zeros(B, H, K, V, device="meta")),
        ValueError, "state: expected on q's device cpu"),
    "out elsewhere": (step(out=torch.zeros(B, 1, H, V, device="meta")), ValueError, "out: expected on q's device cpu"),
    "slots elsewhere": (
        step(slots=torch.tensor([0, 1], device="meta")),
        ValueError, "slots: expected on q's device cpu"),
    "gradient": (
        step(q=torch.randn(B, 1, H, K, requires_grad=True)),
        RuntimeError, "decode_ updates its state in place and has no gradient"),
    "q rank": (step(q=torch.randn(B, H, K)), ValueError, r"q: expected \[B, T, Hq, K\]"),
    "backend": (step(backend="warp"), ValueError, "backend: expected one of"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), MALFORMED_STEPS.values(), ids=MALFORMED_STEPS)
def test_decode_refuses(arguments, error, message):
    state = arguments["state"].clone()
    with pytest.raises(error, match=message):
        portable_gla.decode_(**arguments)
    assert state.is_meta or torch.equal(state, arguments["state"])


def test_a_second_derivative_is_refused():
    q = torch.randn(1, 4, 1, 3, requires_grad=True)
    first, = torch.autograd.grad(portable_gla.attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"portable_gla.attention has no second derivative"):
        first.sum().backward()


def test_values_are_not_judged():
    """NaN and positive gates are numbers like others; they come out where they go in."""
    given = tensors()
    given["q"][0, 3] = math.nan
    o = portable_gla.attention(**given)
    assert o[0, 3].isnan().all() and o[0, :3].isfinite().all() and o[1].isfinite().all()


@pytest.mark.parametrize("changes", [
    {"heads": 0}, {"tokens": -1}, {"gate": "row"}, {"k_heads": 3}, {"mode": "train"}, {"value_dim": 0}])
def test_problem_refuses(changes):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"{name}: expected"):
        portable_gla.Problem(**{"tokens": 8, "heads": 4, "key_dim": 3, "value_dim": 5, **changes})
