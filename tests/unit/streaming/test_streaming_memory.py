"""Memory does not grow with T: to four million tokens, every allocation counted."""

import pytest
import torch

import portable_gla
from portable_gla.testing.counting import counted

H, D, SEGMENT = 1, 8, 2**16
LONGEST = 2**22


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Memory maps of the longest sequence, whose beginnings are the shorter ones; bfloat16, 64 MiB each."""
    folder = tmp_path_factory.mktemp("long")
    generator = torch.Generator().manual_seed(0)
    maps = {}
    for name in ("q", "k", "v", "g", "do", "o", "dq", "dk", "dv", "dg"):
        maps[name] = torch.from_file(str(folder / name), shared=True, size=LONGEST * H * D, dtype=torch.bfloat16)
        if name in ("q", "k", "v", "g", "do"):
            for part in maps[name].split(2**20):
                part.normal_(generator=generator)
                if name == "g":
                    part.copy_(torch.nn.functional.logsigmoid(part))
    return maps


def views(files, tokens):
    return {name: x[:tokens * H * D].view(1, tokens, H, D) for name, x in files.items()}


def test_forward(files):
    peaks = {}
    for tokens in (2**17 + 5, 2**20 - 3, LONGEST):
        x = views(files, tokens)
        x["o"].fill_(float("nan"))
        count, _ = counted(lambda x=x: portable_gla.stream(
            x["q"], x["k"], x["v"], x["g"], device="cpu", segment_tokens=SEGMENT, out=x["o"], progress=False))
        peaks[tokens] = count.peak
        assert not x["o"].isnan().any()
    # The ring: two slots of q, k, v, g and o. Beside it o once more, before it is copied to its slot, and a state.
    slot = 5 * SEGMENT * H * D * 2
    assert max(peaks.values()) - min(peaks.values()) < 4096
    assert 2 * slot <= max(peaks.values()) <= 2 * slot + slot // 5 + 2**16
    # With these gates 2,000 tokens are more than any memory: the end is as if computed alone.
    x = {name: value[:, -4096:] for name, value in views(files, LONGEST).items()}
    alone = portable_gla.attention(x["q"], x["k"], x["v"], x["g"])[:, 2000:]
    torch.testing.assert_close(x["o"][:, 2000:], alone, rtol=2**-7, atol=1e-3)


def test_forward_and_backward(files):
    peaks = {}
    for tokens in (2**17 + 5, 2**20):
        x = views(files, tokens)
        for name in ("dq", "dk", "dv", "dg"):
            x[name].fill_(float("nan"))
        count, _ = counted(lambda x=x: portable_gla.stream_backward(
            x["q"], x["k"], x["v"], x["g"], x["do"], device="cpu", segment_tokens=SEGMENT, progress=False,
            out={name: x[f"d{name}"] for name in "qkvg"}))
        states = -(-tokens // SEGMENT) * 4 * H * D * D  # those in host memory, which the device would not hold
        peaks[tokens] = count.peak - states
        assert not any(x[name].isnan().any() for name in ("dq", "dk", "dv", "dg"))
    assert max(peaks.values()) - min(peaks.values()) < 4096
