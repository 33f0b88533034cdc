"""The whole demo with a few seconds to train, and each of its parts."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from portable_gla.demo import checkpoint, generate, job, oracle_check, run, text
from portable_gla.demo.evaluate import bits_per_byte
from portable_gla.demo.model import ByteModel, Config
from portable_gla.demo.optimizer import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore::portable_gla.PortabilityWarning")
SMALL = Config(width=16, layers=2, heads=2, hidden=16, grams=2, rows=64)


@pytest.fixture
def model() -> ByteModel:
    torch.manual_seed(0)
    model = ByteModel(SMALL)
    for x in model.parameters():  # the zeros at the start would hide what a block does
        torch.nn.init.normal_(x, std=0.3)
    return model


@pytest.fixture
def small_job(monkeypatch):
    """Make one training step quick, so that a short budget holds several."""
    monkeypatch.setattr(job, "Config", lambda: SMALL)
    whole = text.load(0)
    monkeypatch.setattr(text, "load", lambda seed: text.Text(whole.training, whole.heldout[:4096], 1, 1))


def test_run(tmp_path, capsys, small_job):
    assert run(tmp_path / "new" / "out", seconds=2.0) == 0
    printed = capsys.readouterr().out
    for line in ("backend ", "float32 against the float64 oracle", "held-out", "zlib -9", "streaming logits", "saved "):
        assert line in printed
    figures = json.loads((tmp_path / "new" / "out" / "figures.json").read_text())
    assert figures["passed"] and set(figures["checks"]) == {"oracle", "learned", "streaming", "checkpoint"}


def test_json_is_all_that_is_printed(tmp_path, capsys, small_job):
    assert run(tmp_path, seconds=1.0, json=True) == 0
    figures = json.loads(capsys.readouterr().out)
    curve = [point["bits_per_byte"] for point in figures["heldout"]]
    assert len(curve) >= 2 and curve[-1] < curve[0] < 12
    assert 1 < figures["zlib_bits_per_byte"] < 4


@pytest.mark.parametrize(("part", "name"), [("STREAMING_BOUND", "streaming"), ("BOUND", "oracle")])
def test_a_failed_check_is_the_exit_status(tmp_path, capsys, small_job, monkeypatch, part, name):
    monkeypatch.setattr(generate if part == "STREAMING_BOUND" else oracle_check, part, -1.0)
    assert run(tmp_path, seconds=0.2, json=True) == 1
    assert json.loads(capsys.readouterr().out)["checks"][name] is False


def test_missing_safetensors_is_said_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job.importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path, seconds=1.0) == 2
    assert "pip install" in capsys.readouterr().err


def test_no_sources_is_said_at_once(tmp_path, capsys, monkeypatch):
    whole = text.load
    monkeypatch.setattr(text, "load", lambda seed: whole(seed, root=tmp_path))
    assert run(tmp_path, seconds=1.0) == 2
    assert "too few Python sources" in capsys.readouterr().err


def test_seconds(tmp_path):
    with pytest.raises(ValueError, match="seconds: expected more than 0"):
        run(tmp_path, seconds=0)


def test_text_is_the_same_every_time():
    first, second, other = text.load(0), text.load(0), text.load(1)
    assert torch.equal(first.training, second.training) and torch.equal(first.heldout, other.heldout)
    assert not torch.equal(first.training, other.training)
    assert first.heldout.shape == (2**17,)


def test_zlib():
    assert text.zlib_bits_per_byte(torch.zeros(10000, dtype=torch.uint8)) < 0.1


def test_bits_per_byte_counts_every_byte(model):
    # 16 lanes of 63 bytes, the last one short: a uniform prediction is 8 bits whatever the length
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert bits_per_byte(model, torch.randint(256, (1001,), dtype=torch.uint8)) == pytest.approx(8.0)


def test_the_model_does_not_see_what_it_predicts(model):
    one = torch.randint(256, (1, 40))
    other = one.clone()
    other[0, 25] += 1
    ours, theirs = (model(x % 256, model.init_state(1))[0] for x in (one, other))
    torch.testing.assert_close(ours[:, :25], theirs[:, :25])
    assert not torch.allclose(ours[:, 25], theirs[:, 25])


def test_the_state_carries_everything(model):
    x = torch.randint(256, (2, 40))
    whole, _ = model(x, model.init_state(2))
    first, state = model(x[:, :17], model.init_state(2))
    second, _ = model(x[:, 17:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-4)


def test_streaming(model):
    assert generate.streaming_error(model, torch.randint(256, (2, 30))) < generate.STREAMING_BOUND
    found = generate.generate(model, b"def", 10, seed=0)
    assert len(found) == 10 and found == generate.generate(model, b"def", 10, seed=0)


def test_oracle_check():
    errors = oracle_check.errors(0)
    assert set(errors) == {"o", "final_state", "dq", "dk", "dv", "dg", "dinitial_state"}
    assert max(errors.values()) < oracle_check.BOUND


def test_optimizer_lowers_the_loss():
    torch.manual_seed(0)
    model = ByteModel(Config(width=32, layers=1, heads=1, hidden=32, grams=1, rows=64))
    optimizer = Optimizer(model)
    assert optimizer._matrices  # wide enough for both kinds of update
    x = torch.randint(256, (4, 33))
    losses = []
    for _ in range(20):
        logits, _ = model(x[:, :-1], model.init_state(4))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        optimizer.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


def test_checkpoint_round_trip(model, tmp_path):
    checkpoint.save(model, tmp_path / "model.safetensors")
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    assert loaded.config == SMALL
    for name, x in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], x), name
    assert all(x.requires_grad for x in loaded.parameters())


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        checkpoint.load(tmp_path / "none")


@pytest.mark.parametrize("kept", [0, 4, 200, 5000])
def test_truncated_checkpoint(model, tmp_path, kept):
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(checkpoint.CheckpointError, match="truncated, damaged or not a safetensors file"):
        checkpoint.load(path)


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_a_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    for path, write in ((tmp_path / "a", lambda path: path.write_bytes(pickle.dumps(Trap(mark)))),
                        (tmp_path / "b", lambda path: torch.save(Trap(mark), path))):
        write(path)
        with pytest.raises(checkpoint.CheckpointError, match="not a safetensors file"):
            checkpoint.load(path)
    assert not mark.exists()


def spoil(path, tensors=None, **metadata):
    """Write the checkpoint again with some of it changed."""
    from safetensors import safe_open
    with safe_open(path, "pt") as file:
        kept = dict(file.metadata())
    save_file({**load_file(path), **(tensors or {})}, path, {**kept, **metadata})


def config(**changed):
    import dataclasses
    return json.dumps({**dataclasses.asdict(SMALL), **changed})


@pytest.mark.parametrize(("tensors", "metadata", "message"), [
    ({"strange": torch.zeros(1)}, {}, "foreign strange"),
    ({"head.bias": torch.zeros(255)}, {}, r"head.bias: expected torch.float32 \[256\], got torch.float32 \[255\]"),
    ({"head.bias": torch.zeros(256).half()}, {}, "head.bias: expected torch.float32"),
    ({}, {"format": "another"}, "not a checkpoint of this demo"),
    ({}, {"config": "{"}, "no readable config"),
    ({}, {"config": "[]"}, "config: expected grams"),
    ({}, {"config": config(width="16")}, "config: width: expected an integer"),
    ({}, {"config": config(rows=10**9)}, "config: rows: expected an integer"),
    ({}, {"config": config(rows=2**23)}, r"grams.0.weight: expected torch.float32 \[8388608, 16\]"),
    ({}, {"config": config(heads=3)}, "config: key_dim: expected a multiple"),
    ({}, {"config": config(layers=3)}, "missing blocks.2"),
])
def test_foreign_checkpoint(model, tmp_path, tensors, metadata, message):
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, path)
    spoil(path, tensors, **metadata)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(path)


def test_another_programs_checkpoint(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="format None"):
        checkpoint.load(tmp_path / "x.safetensors")
