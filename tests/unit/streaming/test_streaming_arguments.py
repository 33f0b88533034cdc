"""What ``stream`` takes: tensors, memory maps, safetensors; and what it refuses before any work."""

import numpy as np
import pytest
import torch

import portable_gla
from portable_gla.testing.streams import ShuffledStreams

T, H, D = 50, 2, 8


@pytest.fixture
def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: -torch.rand(2, T, H, D, generator=generator) for name in ("q", "k", "v", "g", "do")}


def stream(x, **options):
    return portable_gla.stream(x["q"], x["k"], x["v"], x["g"], **{
        "device": "cpu", "segment_tokens": 16, "progress": False, **options})


def backward(x, **options):
    return portable_gla.stream_backward(x["q"], x["k"], x["v"], x["g"], x["do"], **{
        "device": "cpu", "segment_tokens": 16, "progress": False, **options})


@pytest.mark.parametrize("layout", ["BTHD", "BHTD"])
@pytest.mark.parametrize("kind", ["numpy", "map", "safetensors", "safetensors-numpy"])
def test_sources(tensors, tmp_path, layout, kind):
    if layout == "BHTD":
        tensors = {name: x.transpose(1, 2).contiguous() for name, x in tensors.items()}
    if kind.startswith("safetensors"):
        from safetensors import safe_open
        from safetensors.torch import save_file

        save_file(tensors, tmp_path / "x.safetensors")
        file = safe_open(tmp_path / "x.safetensors", "np" if kind.endswith("numpy") else "pt")
        given = {name: file.get_slice(name) for name in tensors}
    else:
        given = {}
        for name, x in tensors.items():
            np.save(tmp_path / name, x.numpy())
            given[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r" if kind == "map" else None)
    assert torch.equal(stream(given, layout=layout), stream(tensors, layout=layout))
    for found, expected in zip(backward(given, layout=layout), backward(tensors, layout=layout), strict=True):
        assert found is expected is None or torch.equal(found, expected)


def test_bfloat16_of_safetensors(tensors, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    halves = {name: x.bfloat16() for name, x in tensors.items()}
    save_file(halves, tmp_path / "x.safetensors")
    file = safe_open(tmp_path / "x.safetensors", "pt")
    assert torch.equal(stream({name: file.get_slice(name) for name in halves}), stream(halves))


def test_targets(tensors, tmp_path):
    expected = stream(tensors)
    array = np.lib.format.open_memmap(tmp_path / "o.npy", "w+", np.float32, tuple(expected.shape))
    found = stream(tensors, out=array)
    array.flush()
    assert torch.equal(found, expected)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "o.npy")), expected)
    strided = torch.full((2, T, H, 2 * D), 7.0)
    assert torch.equal(stream(tensors, out=strided[..., ::2]), expected)
    assert bool((strided[..., 1::2] == 7).all())
    gradients = backward(tensors)
    dq = torch.empty(2, T, H, D)
    assert backward(tensors, out={"q": dq}).q is dq
    assert torch.equal(dq, gradients.q)


def test_constant_gates_and_expanded_inputs(tensors):
    gate = -torch.rand(H)
    k = tensors["k"][:, :, :1].expand(-1, -1, H, -1)
    found = portable_gla.stream(tensors["q"], k, tensors["v"], gate, device="cpu", segment_tokens=7)
    torch.testing.assert_close(found, portable_gla.attention(tensors["q"], k, tensors["v"], gate))


def test_the_default_segment_does_not_depend_on_t(tensors):
    from portable_gla.streaming.segments import default_tokens

    assert default_tokens(5 * 128 * 2 * 32) == 1536  # 60 MiB
    assert default_tokens(1) == 2**26
    assert default_tokens(2**30) == 256
    assert torch.equal(stream(tensors, segment_tokens=None), portable_gla.attention(
        *(tensors[name] for name in ("q", "k", "v", "g"))))


def test_progress(tensors, capfd):
    told = []
    stream(tensors, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 4) for n in range(5)]
    told.clear()
    backward(tensors, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told if told] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    stream(tensors, progress=None)  # no terminal
    stream(tensors, progress=False)
    assert capfd.readouterr() == ("", "")
    stream(tensors, progress=True)
    assert "streaming" in capfd.readouterr().err


def test_autograd(tensors):
    q = tensors["q"].requires_grad_()
    with pytest.raises(RuntimeError, match="q: stream records no gradient"):
        stream(tensors)
    with torch.no_grad():
        assert not stream(tensors).requires_grad
    assert not backward(tensors).q.requires_grad
    assert q.grad is None


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"device": "nosuch"}, RuntimeError, "nosuch"),
    ({"device": "meta"}, ValueError, "device: expected one that PyTorch sees here"),
    ({"segment_tokens": 0}, ValueError, "segment_tokens: expected 1 or more, got 0"),
    ({"segment_tokens": 1.0}, TypeError, "segment_tokens: expected an integer, got float"),
    ({"prefetch": 0}, ValueError, "prefetch: expected 1 or more, got 0"),
    ({"layout": "THBD"}, ValueError, "layout: expected one of"),
    ({"scale": "x"}, TypeError, "scale: expected a number"),
    ({"backend": "nosuch"}, ValueError, "backend: expected one of"),
    ({"backend": "triton"}, portable_gla.UnsupportedProblem, "no backend serves this call"),
    ({"bonus": torch.zeros(H, 3)}, ValueError, "bonus: expected shape"),
    ({"initial_state": torch.zeros(3, H, D, D)}, ValueError, "initial_state: expected shape"),
    ({"initial_state": 1}, TypeError, "initial_state: expected a tensor, got int"),
    ({"cu_seqlens": torch.tensor([0, T])}, ValueError, "cu_seqlens: expected B = 1"),
    ({"out": torch.zeros(2, T, H, 3)}, ValueError, r"out: expected shape \[2, 50, 2, 8\], got \[2, 50, 2, 3\]"),
    ({"out": torch.zeros(2, T, H, D, dtype=torch.float64)}, TypeError, "out: expected dtype float32, got float64"),
    ({"out": "o.bin"}, TypeError, "out: expected a tensor or a numpy array to write to, got str")])
def test_malformed_calls_are_refused_before_any_work(tensors, options, error, message):
    with pytest.raises(error, match=message):
        stream(tensors, progress=lambda done, total: pytest.fail("it began"), **options)


def test_more_that_is_refused(tensors):
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        stream(tensors, out=tensors["v"])
    with pytest.raises(ValueError, match=r"out\['k'\]: expected memory of its own"):
        both = torch.zeros(2, T, H, D)
        backward(tensors, out={"q": both, "k": both})
    with pytest.raises(ValueError, match="out: expected a mapping from some of q, k, v, g to memory, got the keys o"):
        backward(tensors, out={"o": None})
    with pytest.raises(ValueError, match="out: expected a writable array"):
        array = np.zeros((2, T, H, D), np.float32)
        array.flags.writeable = False
        stream(tensors, out=array)
    with pytest.raises(TypeError, match="k: expected a tensor, a numpy array or a safetensors slice, got list"):
        stream({**tensors, "k": [1]})
    with pytest.raises(TypeError, match="q: expected an array of a dtype that PyTorch has"):
        stream({**tensors, "q": np.zeros((2, T, H, D), ">f4")})
    with pytest.raises(ValueError, match=r"v: expected T = 50 as in q, got shape \[2, 49, 2, 8\]"):
        stream({**tensors, "v": tensors["v"][:, 1:]})
    with pytest.raises(ValueError, match="do: expected shape"):
        backward({**tensors, "do": tensors["do"][:, 1:]})
    with pytest.raises(ValueError, match="dfinal_state: expected a tensor"):
        backward(tensors, dfinal_state=torch.zeros(1, H, D, D))
    with pytest.raises(ValueError, match="cu_seqlens: expected to end at T = 50, got 49"):
        stream({name: x[:1] for name, x in tensors.items()}, cu_seqlens=torch.tensor([0, 49]))


def test_too_little_host_memory_is_said_before_any_work(tensors, monkeypatch):
    for module in ("job", "pipeline"):
        monkeypatch.setattr(f"portable_gla.streaming.{module}.available_host_bytes", lambda: 1000)
    with pytest.raises(portable_gla.HostMemoryError, match=r"out: .* take 6\.25 KiB of host memory, and 1000 B is"):
        stream(tensors)
    streams = ShuffledStreams(0)
    with pytest.raises(portable_gla.HostMemoryError, match="of host memory for its buffers"):
        stream(tensors, out=torch.zeros(2, T, H, D), streams=streams)
    assert streams.copies == streams.host_bytes == 0
    with pytest.raises(portable_gla.HostMemoryError, match="the states before 50 segments take"):
        backward(tensors, segment_tokens=1, out={name: torch.zeros(2, T, H, D) for name in "qkvg"})
