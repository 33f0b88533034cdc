"""``portable-gla bench`` on tiny shapes, behind checks that are made up."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch

from portable_gla.cli import peers, plotting, timing, verify

TINY = ("--backend", "eager", "--heads", "1", "--key-dim", "8", "--repeats", "2", "--budget", "0.1",
        "--tokens", "64,16")


class Row(NamedTuple):
    case: str
    quantity: str
    error: float
    budget: float
    ok: bool
    note: str = ""


@pytest.fixture
def checks(monkeypatch):
    """Stand in for the quick verify that gates the timing."""

    def answer(*rows):
        monkeypatch.setattr(verify, "check", lambda *arguments: iter(rows))

    answer(Row("tokens-15", "o", 1e-7, 1e-6, True))
    return answer


def test_a_table_per_pass(cli, checks):
    result = cli("bench", *TINY)
    assert result.exit_code == 0
    for text in ("forward + backward", "eager", "torch sdpa", "1.00", " %", "absent    flash-linear-attention"):
        assert text in result.stdout


def test_json(cli, checks):
    found = json.loads(
        cli("bench", *TINY, "--gate", "head", "--dtype", "bfloat16", "--value-dim", "12", "--json").stdout)
    assert found["ok"] and found["baseline"] == "eager"
    assert found["shape"] == {"batch": 1, "heads": 1, "key_dim": 8, "value_dim": 12, "dtype": "bfloat16",
                              "gate": "head"}
    assert [(row["tokens"], row["passes"]) for row in found["rows"] if row["name"] == "eager"] == [
        (16, "forward"), (16, "forward + backward"), (64, "forward"), (64, "forward + backward")]
    for row in found["rows"]:
        assert row["fastest"] <= row["median"] <= row["slowest"] and 1 <= len(row["samples"]) <= 2
        assert (row["floor"] is not None) == (row["name"] == "eager")
    assert [row["name"] for row in found["absent"]] == ["flash-linear-attention"]


@pytest.mark.parametrize("gate", ["channel", "head", "constant", "none"])
def test_every_gate(cli, checks, gate):
    assert cli("bench", *TINY, "--gate", gate, "--no-peers", "--passes", "both").exit_code == 0


def test_forward_alone_without_peers(cli, checks):
    result = cli("bench", *TINY, "--passes", "forward", "--no-peers")
    assert result.exit_code == 0 and "backward" not in result.stdout and "sdpa" not in result.stdout


def test_nothing_is_timed_where_verify_fails(cli, checks):
    checks(Row("tokens-15", "dk", 1.0, 1e-6, False))
    result = cli("bench", *TINY)
    assert result.exit_code == 1 and result.stdout == ""
    assert "nothing is timed" in result.stderr and "tokens-15" in result.stderr


def test_the_plot_is_written(cli, checks, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "times.png"
    assert cli("bench", *TINY, "--plot", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_a_missing_matplotlib_is_said_before_anything_is_timed(cli, checks, monkeypatch, tmp_path):
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None)
    result = cli("bench", *TINY, "--plot", str(tmp_path / "times.png"))
    assert result.exit_code == 2 and "portable-gla[plot]" in result.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["--tokens", "12x"], ["--tokens", "such as 1024,4096", "'12x'"]),
    (["--tokens", "0"], ["--tokens", "'0'"]),
    (["--tokens", ""], ["--tokens", "''"]),
    (["--heads", "0"], ["--heads", "expected an integer of 1 or more", "'0'"]),
    (["--repeats", "1"], ["--repeats", "expected an integer of 2 or more", "'1'"]),
    (["--budget", "fast"], ["--budget", "expected a number of 0.1 or more", "'fast'"]),
    (["--budget", "nan"], ["--budget", "'nan'"]),
    (["--budget", "inf"], ["--budget", "'inf'"]),
    (["--backend", "cudnn"], ["--backend", "expected one of", "'cudnn'"]),
    (["--device", "cuda:9"], ["--device", "expected one of cpu", "'cuda:9'"]),
    (["--gate", "vector"], ["--gate", "vector"]),
    (["--plot", "times.txt"], ["--plot", ".png", "'times.txt'"]),
    (["--plot", "no/such/folder/times.png"], ["--plot", "folder that exists"]),
])
def test_a_wrong_argument_is_2_and_named(cli, checks, arguments, words):
    result = cli("bench", *arguments)
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and result.stdout == ""
    for word in words:
        assert word in message, message


def test_a_call_that_fails_is_a_reason_and_the_others_go_on():
    def broken():
        raise RuntimeError("CUDA out of memory\nlong details")

    ticks = []
    times, failed = timing.interleaved({"works": lambda: None, "broken": broken}, torch.device("cpu"), 3, 1.0,
                                       lambda: ticks.append(1))
    assert list(times) == ["works"] and len(times["works"].samples) == 3 and len(ticks) == 3
    assert failed == {"broken": "RuntimeError: CUDA out of memory"}


def test_peers_compute_what_they_should():
    shape = peers.Shape(2, 2, 8, 12, torch.float32, "channel", torch.device("cpu"), seed=0)
    inputs = shape.inputs(20)
    o = peers.sdpa(shape, inputs).forward()
    weights = torch.einsum("bthk,bshk->bhts", inputs.q, inputs.k) * 8**-0.5
    weights = weights.masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(o, torch.einsum("bhts,bshv->bhtv", weights, inputs.v))
    assert len(peers.sdpa(shape, inputs).forward_backward()) == 3
    assert len(peers.backend("eager")(shape, inputs).forward_backward()) == 4


def test_flash_linear_attention_is_called_as_it_wants_to_be(monkeypatch):
    calls = []

    class Module:
        def chunk_gla(self, q, k, v, g, scale):
            calls.append(("chunk_gla", g.dim()))
            return v * g.mean() * q.mean() * k.mean(), None

        def chunk_simple_gla(self, q, k, v, g=None, g_gamma=None, scale=None):
            calls.append(("chunk_simple_gla", "g" if g is not None else "g_gamma"))
            return v * q.mean() * k.mean() * (1 if g is None else g.mean()), None

    monkeypatch.setattr(peers.importlib, "import_module", lambda name: Module())
    for gate in ("channel", "head", "constant"):
        shape = peers.Shape(1, 2, 8, 8, torch.float32, gate, torch.device("cpu"), seed=0)
        gpu = peers.Shape(1, 2, 8, 8, torch.float32, gate, torch.device("cuda"), seed=0)
        peers.flash_linear_attention(gpu, shape.inputs(4)).forward_backward()
    assert calls == [("chunk_gla", 4), ("chunk_simple_gla", "g"), ("chunk_simple_gla", "g_gamma")]
    with pytest.raises(peers.Absent, match="do not run on cpu"):
        peers.flash_linear_attention(shape, shape.inputs(4))
