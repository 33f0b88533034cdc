"""Results do not depend, to the bit, on the instruction set, the threads, or how V is cut among them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from portable_gla_cpu import native, tiling

import portable_gla
from portable_gla.testing.poison import poisoned_memory

SHAPES = {  # tokens, (Hq, Hk, Hv, Hg), K, V, dtype, gate, bonus, packed
    "wide": (300, (2, 2, 2, 2), 128, 128, torch.float32, "channel", False, None),
    "odd": (70, (4, 2, 1, 4), 17, 33, torch.float32, "channel", True, None),
    "head": (530, (1, 1, 3, 3), 100, 24, torch.bfloat16, "head", False, (0, 5, 5, 290, 530)),
    "half": (40, (2, 2, 2, 1), 64, 200, torch.float16, "constant", True, None),
    "narrow": (33, (1, 1, 1, 1), 1, 8, torch.float32, "none", False, None),
}
PROGRAM = "import torch, test_same_bits; torch.set_num_threads(1); print(test_same_bits.digests())"


def compute(name):
    """Return every output and gradient of one shape, and of decoding from its final state."""
    tokens, (hq, hk, hv, hg), key_dim, value_dim, dtype, gate, with_bonus, packed = SHAPES[name]
    torch.manual_seed(len(name))
    heads = max(hq, hk, hv, hg)
    q, k, v = (torch.randn(1, tokens, h, d).to(dtype) for h, d in ((hq, key_dim), (hk, key_dim), (hv, value_dim)))
    g = {"channel": -torch.rand(1, tokens, hg, key_dim), "head": -torch.rand(1, tokens, hg),
         "constant": -torch.rand(hg), "none": None}[gate]
    if gate == "channel":
        g[0, ::7] = -float("inf")
    ends = None if packed is None else torch.tensor(packed)
    state = torch.randn(1 if packed is None else len(packed) - 1, heads, key_dim, value_dim)
    bonus = torch.randn(heads, key_dim) if with_bonus else None
    leaves = [x.requires_grad_() for x in (q, k, v, g, state, bonus) if x is not None]
    o, final = portable_gla.attention(q, k, v, g, initial_state=state, bonus=bonus, cu_seqlens=ends,
                                      output_final_state=True, backend="cpu")
    gradients = torch.autograd.grad([o, final], leaves, [torch.randn(o.shape).to(dtype), torch.randn(final.shape)])
    pool = final.detach()[:1].clone()
    with torch.no_grad():
        first = [x if x is None or x.dim() == 1 else x[:, :2] for x in (q, k, v, g)]
        step = portable_gla.decode_(*first, pool, bonus=bonus, backend="cpu")
    found = [o.detach(), final.detach(), *gradients, step, pool]
    assert not any(x.isnan().any() for x in found)
    return found


def digests():
    with poisoned_memory():
        return " ".join(hashlib.sha256(b"".join(x.contiguous().view(torch.uint8).numpy().tobytes()
                                                for x in compute(name))).hexdigest() for name in SHAPES)


def in_a_process(isa):
    environment = {**os.environ, "PORTABLE_GLA_CPU_ISA": isa, "PYTHONPATH": str(Path(__file__).parent)}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True,
                            timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.skipif(native.library().isa != "avx512", reason="this processor has one instruction set of the two only")
def test_avx2_and_avx512_agree():
    assert in_a_process("avx2") == in_a_process("avx512")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("segments", [1, 3])
def test_the_number_of_threads_does_not_matter(monkeypatch, name, segments):
    monkeypatch.setattr(tiling, "_threads", lambda work, threads: threads)  # small work too is shared out
    tiling.forward.cache_clear()
    tiling.backward.cache_clear()
    before = torch.get_num_threads()
    found = []
    try:
        with portable_gla.override(segments=segments):
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(compute(name))
    finally:
        torch.set_num_threads(before)
        tiling.forward.cache_clear()
        tiling.backward.cache_clear()
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value_dim", [24, 40, 72, 100])
def test_decoding_stays_within_the_rows_of_a_state(value_dim):
    """V a multiple of the lanes but not of 16, in the middle of a larger buffer."""
    torch.manual_seed(value_dim)
    q, k, v = torch.randn(2, 1, 2, 9), torch.randn(2, 1, 2, 9), torch.randn(2, 1, 2, value_dim)
    g = -torch.rand(2, 1, 2, 9)
    around = torch.randn(2, 2, 9, value_dim + 20)
    state = around[..., :value_dim]
    expected_state, outside = state.clone(), around[..., value_dim:].clone()
    expected = portable_gla.decode_(q, k, v, g, expected_state, backend="eager")
    o = portable_gla.decode_(q, k, v, g, state, backend="cpu")
    assert torch.allclose(o, expected, atol=1e-5) and torch.allclose(state, expected_state, atol=1e-5)
    assert torch.equal(around[..., value_dim:], outside)
