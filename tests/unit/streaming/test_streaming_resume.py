"""An interrupted run goes on after its last finished segment, and nothing but its own files is ever written over."""

import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import portable_gla
from portable_gla import ops
from portable_gla.testing.streams import ShuffledStreams

B, T, H, D, SEGMENT = 1, 100, 2, 8, 9
COUNT = 12
OFFSETS = torch.tensor([0, 0, 13, 14, 60, 60, 95, T])
N = len(OFFSETS) - 1


class Interrupted(BaseException):
    """Not an Exception: like KeyboardInterrupt."""


@pytest.fixture
def inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v, g, do = (torch.randn(B, T, H, D, generator=generator) for _ in range(5))
    state, dfinal = (torch.randn(N, H, D, D, generator=generator) for _ in range(2))
    return {"q": q, "k": k, "v": v, "g": torch.nn.functional.logsigmoid(g), "do": do, "state": state, "df": dfinal,
            "bonus": torch.randn(H, D, generator=generator)}


def forward(x, out, packed=True, **options):
    options = {"device": "cpu", "segment_tokens": SEGMENT, "progress": False, "bonus": x["bonus"], **options}
    if packed:
        options.update(cu_seqlens=OFFSETS, initial_state=x["state"])
    found = portable_gla.stream(x["q"], x["k"], x["v"], x["g"], output_final_state=True, out=out["o"], **options)
    return list(found)


def backward(x, out, packed=True, **options):
    options = {"device": "cpu", "segment_tokens": SEGMENT, "progress": False, "bonus": x["bonus"], **options}
    options["dfinal_state"] = x["df"] if packed else x["df"][:1]
    if packed:
        options.update(cu_seqlens=OFFSETS, initial_state=x["state"])
    found = portable_gla.stream_backward(x["q"], x["k"], x["v"], x["g"], x["do"],
                                         out={name: out[name] for name in "qkvg"}, **options)
    return [value for value in found if value is not None]


def memory():
    return {name: torch.full((B, T, H, D), float("nan")) for name in ("o", "q", "k", "v", "g")}


def stop_at(number):
    def progress(done, total):
        if done >= number:
            raise Interrupted
    return progress


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("call", "steps"), [(forward, COUNT), (backward, 2 * COUNT)])
def test_interrupted_anywhere_and_resumed(inputs, tmp_path, monkeypatch, seed, call, steps, packed):
    expected = call(inputs, memory(), packed)
    chance = random.Random(seed)
    computed = []
    run = ops.forward
    monkeypatch.setattr(ops, "forward", lambda *args: (computed.append(1), run(*args))[1])
    for fake in (False, True):
        computed.clear()
        out, path, stops = memory(), tmp_path / "progress", sorted(chance.sample(range(1, steps), 3))
        for stop in stops:
            with pytest.raises(Interrupted):
                call(inputs, out, packed, resume=path, progress=stop_at(stop),
                     streams=ShuffledStreams(stop) if fake else None)
            assert path.exists()
        found = call(inputs, out, packed, resume=path)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not list(tmp_path.iterdir())
        # On a CPU a segment is finished before the next begins, and so never computed twice.
        assert fake or len(computed) == steps


def test_killed_while_writing_the_progress_file(inputs, tmp_path, monkeypatch):
    out, path = memory(), tmp_path / "progress"
    with monkeypatch.context() as patch:
        saved, calls = np.savez, []

        def torn(file, **values):
            calls.append(1)
            if len(calls) == 5:
                file.write(b"half a file")
                raise Interrupted
            saved(file, **values)

        patch.setattr(np, "savez", torn)
        with pytest.raises(Interrupted):
            forward(inputs, out, resume=path)
    found = forward(inputs, out, resume=path)
    assert all(torch.equal(a, b) for a, b in zip(found, forward(inputs, memory()), strict=True))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
import numpy as np, torch, portable_gla

torch.set_num_threads(1)
folder, stop = sys.argv[1], int(sys.argv[2])
q, k, v, g = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in "qkvg")
o = np.load(f"{folder}/o.npy", mmap_mode="r+")
portable_gla.stream(q, k, v, g, device="cpu", segment_tokens=9, out=o, resume=f"{folder}/progress",
                    progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == stop else None)
"""


def test_a_killed_process_is_resumed_by_another(inputs, tmp_path):
    for name in "qkvg":
        np.save(tmp_path / name, inputs[name].numpy())
    np.save(tmp_path / "o", np.full((B, T, H, D), np.nan, np.float32))
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "7"], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "progress").exists()
    told = []
    o = np.load(tmp_path / "o.npy", mmap_mode="r+")
    x = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "qkvg"]
    found = portable_gla.stream(*x, device="cpu", segment_tokens=SEGMENT, out=o, resume=tmp_path / "progress",
                                progress=lambda done, total: told.append(done))
    assert told == list(range(7, COUNT + 1))
    assert torch.equal(found, portable_gla.stream(*(inputs[name] for name in "qkvg"), device="cpu",
                                                  segment_tokens=SEGMENT))


@pytest.fixture
def interrupted(inputs, tmp_path):
    out, path = memory(), tmp_path / "progress"
    with pytest.raises(Interrupted):
        forward(inputs, out, resume=path, progress=stop_at(5))
    return out, path


@pytest.mark.parametrize(("change", "message"), [
    ({"segment_tokens": 10}, "segments was"), ({"reverse": True}, "reverse was False, and is True"),
    ({"scale": 2.0}, "scale was"), ({"packed": False}, "packed was True, and is False")])
def test_other_options_are_refused(inputs, interrupted, change, message):
    out, path = interrupted
    before, kept = path.read_bytes(), out["o"].clone()
    with pytest.raises(portable_gla.ResumeError, match=message):
        forward(inputs, out, resume=path, **change)
    assert path.read_bytes() == before
    assert torch.equal(out["o"].nan_to_num(), kept.nan_to_num())
    forward(inputs, out, resume=path)  # and the right call still goes on


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "state", "bonus"])
def test_other_inputs_are_refused(inputs, interrupted, name):
    out, path = interrupted
    with pytest.raises(portable_gla.ResumeError, match="is of another call"):
        forward({**inputs, name: inputs[name] * 0.5}, out, resume=path)


def test_another_pass_is_refused(inputs, interrupted):
    out, path = interrupted
    with pytest.raises(portable_gla.ResumeError, match="direction was 'forward', and is 'backward'"):
        backward(inputs, out, resume=path)


def test_other_memory_to_write_to_is_refused(inputs, interrupted):
    _, path = interrupted
    with pytest.raises(portable_gla.ResumeError, match="out does not hold what the interrupted run wrote"):
        forward(inputs, memory(), resume=path)


@pytest.mark.parametrize("content", [b"", b"my thesis", b"PK\x03\x04"])
def test_a_file_of_somebody_else_is_left_alone(inputs, tmp_path, content):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(portable_gla.ResumeError, match="exists and is no progress file"):
        forward(inputs, memory(), resume=path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_an_array_of_somebody_else_is_left_alone(inputs, tmp_path):
    foreign = tmp_path / "progress.final"
    foreign.write_bytes(b"mine")
    with pytest.raises(portable_gla.ResumeError, match="exists without its progress file"):
        forward(inputs, memory(), resume=tmp_path / "progress")
    assert foreign.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_missing_array_is_said(inputs, interrupted):
    out, path = interrupted
    path.with_name("progress.final").unlink()
    with pytest.raises(portable_gla.ResumeError, match=r"progress\.final.*missing"):
        forward(inputs, out, resume=path)


def test_resume_needs_out(inputs, tmp_path):
    with pytest.raises(ValueError, match="resume: expected out= as well"):
        forward(inputs, {"o": None}, resume=tmp_path / "progress")
    with pytest.raises(ValueError, match="resume: expected out= for q, k, v, g"):
        portable_gla.stream_backward(*(inputs[name] for name in ("q", "k", "v", "g", "do")), device="cpu",
                                     out={"q": memory()["q"]}, resume=tmp_path / "progress")
    assert not list(tmp_path.iterdir())
