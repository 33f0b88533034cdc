"""The layer: streaming equals parallel, it compiles, it follows autocast, and it says what is wrong."""

import pytest
import torch

import portable_gla
from portable_gla.nn import GatedLinearAttention

pytestmark = pytest.mark.filterwarnings("ignore::portable_gla.PortabilityWarning")
D, B, T = 32, 2, 21
KINDS = [{}, {"num_kv_heads": 2}, {"gate": "head"}, {"bonus": True}, {"output_gate": False},
         {"key_dim": 20, "value_dim": 44, "num_kv_heads": 1}]


def make(seed: int = 0, **keywords) -> GatedLinearAttention:
    torch.manual_seed(seed)
    return GatedLinearAttention(D, **keywords)


@pytest.mark.parametrize("keywords", KINDS)
def test_streaming_equals_parallel(keywords):
    layer = make(**keywords)
    x = torch.randn(B, T, D)
    y, final = layer(x, output_state=True)
    assert y.shape == x.shape
    state = layer.init_state(B)
    steps = [layer.step(x[:, t], state) for t in range(T - 3)]
    steps += list(layer.step(x[:, T - 3:], state).unbind(1))  # a few tokens at once
    torch.testing.assert_close(torch.stack(steps, 1), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keywords", KINDS)
def test_equals_the_reference_backend(keywords):
    layer, reference = make(**keywords), make(backend="reference", **keywords)
    x = torch.randn(B, T, D)
    losses = []
    for model in (layer, reference):
        y = model(x)
        y.square().sum().backward()
        losses.append(y)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    for (name, mine), theirs in zip(layer.named_parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_state_continues_a_text():
    layer = make()
    x = torch.randn(B, T, D)
    first, state = layer(x[:, :9], output_state=True)
    torch.testing.assert_close(torch.cat([first, layer(x[:, 9:], state=state)], 1), layer(x), rtol=1e-4, atol=1e-5)


def test_packed_is_separate():
    layer = make()
    x = torch.randn(1, T, D)
    y = layer(x, cu_seqlens=torch.tensor([0, 4, 4, T]))
    torch.testing.assert_close(y, torch.cat([layer(x[:, :4]), layer(x[:, 4:])], 1), rtol=1e-4, atol=1e-5)


def test_slots():
    layer = make()
    x = torch.randn(B, D)
    pool = layer.init_state(3)
    y = layer.step(x, pool, slots=torch.tensor([2, -1]))
    torch.testing.assert_close(y[:1], layer.step(x[:1], layer.init_state(1)))
    assert not pool[:2].any() and pool[2].any()


@pytest.mark.parametrize("keywords", KINDS)
def test_compiles_whole_with_dynamic_tokens(keywords):
    layer = make(**keywords)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, T):
        x = torch.randn(B, tokens, D)
        y = compiled(x)
        torch.testing.assert_close(y, layer(x))
        layer.zero_grad()
        y.sum().backward()
        assert layer.q_proj.weight.grad.any()


@pytest.mark.parametrize("keywords", KINDS)
def test_autocast(keywords):
    layer = make(**keywords)
    x = torch.randn(B, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x, output_state=True)
        step = layer.step(x[:, 0], layer.init_state(B))
    assert y.dtype == step.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.05)
    torch.testing.assert_close(step, y[:, 0], rtol=0.05, atol=0.02)
    y.sum().backward()
    assert layer.k_proj.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    layer = make(dtype=dtype, bonus=True)
    x = torch.randn(B, T, D, dtype=dtype)
    state = layer.init_state(B)
    assert layer(x).dtype == layer.step(x[:, 0], state).dtype == dtype
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_state_dict_is_stable():
    assert list(make(bonus=True).state_dict()) == [
        "norm_weight", "bonus", "q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.0.weight",
        "gate_proj.1.weight", "gate_proj.1.bias", "output_gate_proj.weight", "o_proj.weight"]
    layer, other = make(0), make(1)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(B, T, D)
    assert torch.equal(layer(x), other(x))


def test_gate_starts_slow():
    layer = make()
    with torch.no_grad():
        _, _, _, g = layer._project(torch.randn(B, T, D))
    assert g.dtype == torch.float32 and float(g.min()) > -0.2 and float(g.max()) < 0


@pytest.mark.parametrize(("keywords", "error", "message"), [
    ({"num_heads": 0}, ValueError, "num_heads: expected 1 or more, got 0"),
    ({"num_heads": 2.0}, TypeError, "num_heads: expected an integer, got float"),
    ({"num_heads": 4, "num_kv_heads": 3}, ValueError, "num_kv_heads: expected a divisor of num_heads = 4, got 3"),
    ({"num_heads": 5}, ValueError, "key_dim: expected a multiple of num_heads = 5, got 16"),
    ({"value_dim": 30}, ValueError, "value_dim: expected a multiple of num_heads = 4, got 30"),
    ({"gate": "row"}, ValueError, "gate: expected one of"),
    ({"gate_normalizer": 0}, ValueError, "gate_normalizer: expected more than 0"),
])
def test_malformed_layers(keywords, error, message):
    with pytest.raises(error, match=message):
        GatedLinearAttention(D, **keywords)


def test_malformed_calls():
    layer = make()
    with pytest.raises(ValueError, match=r"x: expected shape \[B, T, 32\], got \[2, 32\]"):
        layer(torch.zeros(2, D))
    with pytest.raises(ValueError, match="x: expected shape"):
        layer.step(torch.zeros(2, D + 1), layer.init_state(2))
    with pytest.raises(ValueError, match="initial_state: expected shape"):
        layer(torch.zeros(2, 3, D), state=layer.init_state(3))
    with pytest.raises(ValueError, match="state: expected P = B = 2"):
        layer.step(torch.zeros(2, D), layer.init_state(3))
    with pytest.raises(ValueError, match="backend: expected one of"):
        make(backend="none such")(torch.zeros(1, 2, D))


def test_nothing_is_moved_to_another_device():
    layer = make(device="meta")
    assert layer.init_state(2).device.type == "meta"
    with pytest.raises((portable_gla.UnsupportedProblem, RuntimeError, ValueError)):
        layer(torch.zeros(1, 2, D))
