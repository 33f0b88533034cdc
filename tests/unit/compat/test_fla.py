"""Every function of ``portable_gla.compat.fla`` against the oracle, and what its signature promises."""

import inspect
import warnings

import pytest
import torch
from torch.nn import functional

import portable_gla
from portable_gla.compat import fla
from portable_gla.testing.oracle import recurrence

pytestmark = pytest.mark.filterwarnings("ignore::portable_gla.PortabilityWarning")
B, T, H, K, V = 2, 37, 2, 8, 12
CHANNEL = [fla.chunk_gla, fla.fused_chunk_gla, fla.fused_recurrent_gla]
HEAD = [fla.chunk_simple_gla, fla.fused_chunk_simple_gla, fla.fused_recurrent_simple_gla]
V_FIRST = [fla.chunk_gla, fla.fused_chunk_gla, fla.fused_recurrent_gla, fla.chunk_simple_gla,
           fla.fused_recurrent_simple_gla]
ALL = [*CHANNEL, *HEAD, fla.parallel_simple_gla]


def inputs(gate: str, batch: int = B, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    shape = {"channel": (batch, T, H, K), "head": (batch, T, H)}[gate]
    found = {"q": torch.randn(batch, T, H, K), "k": torch.randn(batch, T, H, K), "v": torch.randn(batch, T, H, V),
             "g": functional.logsigmoid(torch.randn(shape))}
    return {name: x.to(dtype).requires_grad_() for name, x in found.items()}


def by_hand(q, k, v, g, state=None, gv=None, scale=None):
    """The recurrence in float64; columns of the state as heads of their own where values decay too."""
    q, k, v = q.double(), k.double(), v.double()
    g = torch.zeros_like(k) if g is None else g.double()
    g = g if g.dim() == 4 else g[..., None].expand_as(k)
    state = q.new_zeros(q.shape[0], H, K, V) if state is None else state.double()
    scale = K ** -0.5 if scale is None else scale
    if gv is None:
        return recurrence(q, k, v, g, state, None, scale)
    o = []
    for t in range(T):
        state = g[:, t, :, :, None].exp() * state * gv[:, t, :, None].double().exp()
        state = state + k[:, t, :, :, None] * v[:, t, :, None]
        o.append(scale * (q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(o, 1), state


def close(found, expected, bound=1e-5):
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    assert float((found - expected).abs().max()) <= bound * max(1.0, float(expected.abs().max()))


def call(function, x, **keywords):
    gate = "gk" if function is fla.fused_recurrent_gla else "g"
    return function(x["q"], x["k"], x["v"], **{gate: x["g"]}, **keywords)


def same_gradients(found, expected, leaves):
    weights = [torch.randn(x.shape) for x in found]
    ours = torch.autograd.grad(sum((x * w).sum() for x, w in zip(found, weights, strict=True)), leaves)
    right = torch.autograd.grad(sum((x * w).sum() for x, w in zip(expected, weights, strict=True)), leaves)
    for mine, theirs in zip(ours, right, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("function", CHANNEL + HEAD)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_matches_the_recurrence_with_gradients(function, scale):
    x = inputs("channel" if function in CHANNEL else "head")
    state = torch.randn(B, H, K, V).requires_grad_()
    found = call(function, x, initial_state=state, output_final_state=True, scale=scale)
    expected = by_hand(**x, state=state, scale=scale)
    close(found[0], expected[0])
    close(found[1], expected[1])
    assert found[1].dtype == torch.float32
    same_gradients(found, expected, [*x.values(), state])


@pytest.mark.parametrize("function", CHANNEL + HEAD)
def test_no_final_state_is_none(function):
    x = inputs("channel" if function in CHANNEL else "head")
    o, state = call(function, x)
    assert state is None
    close(o, by_hand(**x)[0])


@pytest.mark.parametrize("function", V_FIRST)
def test_state_v_first(function):
    x = inputs("channel" if function in CHANNEL else "head")
    state = torch.randn(B, H, K, V)
    plain = call(function, x, initial_state=state, output_final_state=True)
    turned_state = state.mT.contiguous().requires_grad_()
    turned = call(function, x, initial_state=turned_state, output_final_state=True, state_v_first=True)
    assert turned[1].shape == (B, H, V, K) and turned[1].is_contiguous()
    assert torch.equal(turned[0], plain[0]) and torch.equal(turned[1].mT, plain[1])
    turned[1].sum().backward()
    assert turned_state.grad.shape == (B, H, V, K)


@pytest.mark.parametrize("function", V_FIRST)
def test_a_tensor_in_the_place_of_state_v_first_is_named(function):
    x = inputs("channel" if function in CHANNEL else "head", batch=1)
    with pytest.raises(TypeError, match="pass cu_seqlens by its keyword"):
        call(function, x, state_v_first=torch.tensor([0, T]))


@pytest.mark.parametrize("function", [fla.fused_recurrent_gla, fla.fused_recurrent_simple_gla])
def test_transpose_state_layout(function):
    x = inputs("channel" if function in CHANNEL else "head")
    expected = call(function, x, output_final_state=True, state_v_first=True)
    with pytest.warns(DeprecationWarning, match="state_v_first"):
        found = call(function, x, output_final_state=True, transpose_state_layout=True)
    assert torch.equal(found[1], expected[1])
    with pytest.raises(ValueError, match="transpose_state_layout"):
        call(function, x, state_v_first=True, transpose_state_layout=True)


@pytest.mark.parametrize("function", [fla.fused_recurrent_gla, fla.fused_recurrent_simple_gla])
def test_reverse(function):
    x = inputs("channel" if function in CHANNEL else "head")
    o, state = call(function, x, reverse=True, output_final_state=True)
    flipped, last = by_hand(**{name: value.flip(1) for name, value in x.items()})
    close(o, flipped.flip(1))
    close(state, last)


@pytest.mark.parametrize("function", [*CHANNEL, *HEAD, fla.parallel_simple_gla])
def test_packed_is_separate(function):
    x = inputs("channel" if function in CHANNEL else "head", batch=1)
    ends = [0, 5, 5, T]
    keywords = {"cu_seqlens": torch.tensor(ends)}
    if "cu_seqlens_cpu" in inspect.signature(function).parameters:
        keywords["cu_seqlens_cpu"] = torch.tensor(ends)
    o, _ = call(function, x, **keywords)
    parts = [by_hand(**{name: value[:, start:end] for name, value in x.items()})[0]
             for start, end in ((0, 5), (5, T))]
    close(o, torch.cat(parts, 1))


@pytest.mark.parametrize("function", CHANNEL + HEAD)
def test_packing_errors(function):
    gate = "channel" if function in CHANNEL else "head"
    with pytest.raises(ValueError, match="B = 1 with cu_seqlens, got B = 2"):
        call(function, inputs(gate), cu_seqlens=torch.tensor([0, T]))
    with pytest.raises(ValueError, match="each of the 2 sequences"):
        call(function, inputs(gate, batch=1), cu_seqlens=torch.tensor([0, 3, T]),
             initial_state=torch.zeros(1, H, K, V))


@pytest.mark.parametrize("function", [fla.chunk_gla, fla.chunk_simple_gla, fla.parallel_simple_gla])
def test_cu_seqlens_cpu_is_checked(function):
    x = inputs("channel" if function in CHANNEL else "head", batch=1)
    with pytest.raises(ValueError, match=f"end at T = {T}"):
        call(function, x, cu_seqlens=torch.tensor([0, T]), cu_seqlens_cpu=torch.tensor([0, T - 1]))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("keyword", ["head_first", "nonsense"])
def test_unknown_keywords(function, keyword):
    x = inputs("channel" if function in CHANNEL else "head")
    with pytest.raises(TypeError, match=keyword):
        call(function, x, **{keyword: True})


@pytest.mark.parametrize("function", ALL)
def test_gates_of_the_other_kind_are_refused(function):
    x = inputs("head" if function in CHANNEL else "channel")
    with pytest.raises(ValueError, match="expected \\[B, T, H"):
        call(function, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    x = inputs("head", dtype=dtype)
    o, state = fla.chunk_simple_gla(**x, output_final_state=True)
    assert o.dtype == dtype
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(o, by_hand(**x)[0], 2e-2)


@pytest.mark.parametrize("function", HEAD)
def test_constant_gate(function):
    x = inputs("head")
    gamma = torch.tensor([-0.1, -0.7])
    close(function(x["q"], x["k"], x["v"], g_gamma=gamma)[0],
          by_hand(x["q"], x["k"], x["v"], gamma.expand(B, T, H))[0])
    close(function(**x, g_gamma=gamma)[0], by_hand(x["q"], x["k"], x["v"], x["g"] + gamma)[0])
    close(function(x["q"], x["k"], x["v"])[0], by_hand(x["q"], x["k"], x["v"], None)[0])


def test_constant_gate_errors():
    x = inputs("head")
    with pytest.raises(ValueError, match="g_gamma"):
        fla.chunk_simple_gla(**x, g_gamma=torch.zeros(1, H))
    with pytest.raises(TypeError, match="g_gamma"):
        fla.chunk_simple_gla(**x, g_gamma=-0.1)


@pytest.mark.parametrize("size", [16, 64, None])
def test_chunk_size(size):
    x = inputs("head")
    close(fla.chunk_simple_gla(**x, chunk_size=size)[0], by_hand(**x)[0])


@pytest.mark.parametrize("size", [0, 24])
def test_chunk_size_is_a_power_of_two(size):
    with pytest.raises(ValueError, match="chunk_size"):
        fla.chunk_simple_gla(**inputs("head"), chunk_size=size)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state_v_first", [False, True])
def test_value_gate(reverse, state_v_first):
    x = inputs("channel")
    gv = functional.logsigmoid(torch.randn(B, T, H, V)).requires_grad_()
    state = torch.randn(B, H, K, V).requires_grad_()
    given = state.mT if state_v_first else state
    found = fla.fused_recurrent_gla(x["q"], x["k"], x["v"], gv=gv, initial_state=given, output_final_state=True,
                                    reverse=reverse, state_v_first=state_v_first)
    turned = [x[name].flip(1) if reverse else x[name] for name in ("q", "k", "v")]
    o, last = by_hand(*turned, None, state=state, gv=gv.flip(1) if reverse else gv)
    expected = (o.flip(1) if reverse else o, last.mT if state_v_first else last)
    close(found[0], expected[0])
    close(found[1], expected[1])
    same_gradients(found, expected, [x["q"], x["k"], x["v"], gv, state])


def test_both_gates():
    x = inputs("channel")
    gv = functional.logsigmoid(torch.randn(B, T, H, V)).requires_grad_()
    with torch.no_grad():
        gv[0, 20, 0, 3] = -torch.inf
    with pytest.warns(portable_gla.PortabilityWarning, match="gk and gv together"):
        found = fla.fused_recurrent_gla(x["q"], x["k"], x["v"], x["g"], gv, output_final_state=True)
    expected = by_hand(**x, gv=gv)
    close(found[0], expected[0])
    close(found[1], expected[1])
    leaves = [x["q"], x["k"], x["v"], x["g"]]
    same_gradients(found, expected, leaves)
    with portable_gla.strict(), pytest.raises(portable_gla.UnsupportedProblem, match="gk and gv together"):
        fla.fused_recurrent_gla(x["q"], x["k"], x["v"], x["g"], gv)


def test_value_gate_packed():
    x = inputs("channel", batch=1)
    gv = functional.logsigmoid(torch.randn(1, T, H, V))
    ends = torch.tensor([0, 10, T])
    o, state = fla.fused_recurrent_gla(x["q"], x["k"], x["v"], gv=gv, cu_seqlens=ends, output_final_state=True)
    alone, last = fla.fused_recurrent_gla(*(x[name][:, 10:] for name in ("q", "k", "v")), gv=gv[:, 10:],
                                          output_final_state=True)
    close(o[:, 10:], alone.double())
    close(state[1:], last.double())


def test_value_gate_shape():
    x = inputs("channel")
    with pytest.raises(ValueError, match="gv: expected shape"):
        fla.fused_recurrent_gla(x["q"], x["k"], x["v"], gv=torch.zeros(B, T, H, K))


@pytest.mark.parametrize("gated", [True, False])
def test_attentions(gated):
    x = inputs("head")
    if not gated:
        x["g"] = None
    o, attentions = fla.parallel_simple_gla(**x, scale=0.5, output_attentions=True)
    close(o, by_hand(**x, scale=0.5)[0])
    assert attentions.shape == (B, H, T, T) and not attentions.requires_grad
    close(torch.einsum("bhij,bjhv->bihv", attentions, x["v"]), by_hand(**x, scale=0.5)[0])
    assert fla.parallel_simple_gla(**x)[1] is None


def test_attentions_behind_a_reset():
    x = inputs("head")
    with torch.no_grad():
        x["g"][:, 11] = -torch.inf
    _, attentions = fla.parallel_simple_gla(**x, output_attentions=True)
    assert torch.isfinite(attentions).all()
    assert not attentions[:, :, 11:, :11].any()


def test_attentions_of_packed_sequences_are_refused():
    with pytest.raises(ValueError, match="output_attentions"):
        fla.parallel_simple_gla(**inputs("head", batch=1), output_attentions=True, cu_seqlens=torch.tensor([0, T]))


def test_compiles_whole():
    x = inputs("channel")
    compiled = torch.compile(fla.fused_recurrent_gla, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compiled(x["q"], x["k"], x["v"], x["g"], output_final_state=True, state_v_first=True)
    expected = fla.fused_recurrent_gla(x["q"], x["k"], x["v"], x["g"], output_final_state=True, state_v_first=True)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
