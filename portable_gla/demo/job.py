"""Train a small byte-level language model of gated linear attention on the sources of Python's library.

Every promise of the package is met on the way and checked: the plan, the error against the oracle, training, decoding
equal to the parallel form, saving and loading.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

from portable_gla import planning
from portable_gla.demo import checkpoint, generate, oracle_check, text
from portable_gla.demo.model import ByteModel, Config
from portable_gla.demo.report import Report
from portable_gla.demo.train import BATCH, TOKENS, train
from portable_gla.problem import Problem

_PROMPT = b'import os\n\n\ndef read(path):\n    """'
_SAMPLE = 400  # bytes


def run(out: Path, seconds: float = 60.0, json: bool = False, seed: int = 0) -> int:
    """Run the whole demo on the CPU.

    Parameters
    ----------
    out
        Folder for ``model.safetensors`` and ``figures.json``; made if it is not there.
    seconds
        Time to train; evaluation and the rest take about a sixth of a minute more.
    json
        Print the figures as one JSON object, and nothing else, to standard output.
    seed
        Of the weights, the order of the files, and the generated text. Runs differ all the same: how many steps fit
        into the time is the machine's affair.

    Returns
    -------
    int
        0 if every check held, 1 if one did not, 2 if something that the demo needs is missing.

    Raises
    ------
    ValueError
        If ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {seconds}")
    if importlib.util.find_spec("safetensors") is None:
        print("the demo saves its model with safetensors, which is not installed: pip install 'portable-gla[demo]'",
              file=sys.stderr)
        return 2
    try:
        source = text.load(seed)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"the demo cannot start: {error}", file=sys.stderr)
        return 2
    report = Report(quiet=json)
    torch.manual_seed(seed)
    model = ByteModel(Config())
    _plan(report, model)
    _oracle(report, seed)
    _train(report, model, source, seconds)
    _generate(report, model, source, seed)
    _save(report, model, source, out / "model.safetensors")
    report.finish(out)
    return 0 if report.passed else 1


def _plan(report: Report, model: ByteModel) -> None:
    layer = model.layers()[0].attention
    found = planning.plan(Problem(
        batch=BATCH, tokens=TOKENS, heads=layer.num_heads, key_dim=layer.head_key_dim, value_dim=layer.head_value_dim,
        initial_state=True, final_state=True, training=True), device="cpu")
    report.figures["plan"] = str(found).splitlines()
    report.say(f"the plan for one layer of the model on this machine\n\n{found}\n")


def _oracle(report: Report, seed: int) -> None:
    errors = oracle_check.errors(seed)
    report.figures["oracle"] = {"errors": errors, "bound": oracle_check.BOUND}
    listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    report.check("oracle", max(errors.values()) <= oracle_check.BOUND,
                 f"float32 against the float64 oracle, relative to the largest element: {listed} "
                 f"(bound {oracle_check.BOUND:.0e})\n")


def _train(report: Report, model: ByteModel, source: text.Text, seconds: float) -> None:
    zlib = text.zlib_bits_per_byte(source.heldout)
    parameters = sum(x.numel() for x in model.parameters())
    report.figures |= {"parameters": parameters, "zlib_bits_per_byte": zlib, "training_seconds": seconds}
    report.say(f"{parameters / 1e6:.2f} M parameters; {source.training.shape[0] / 1e6:.1f} MB in {source.files} files "
               f"to train on, {source.heldout.shape[0] / 1e3:.0f} kB of {source.heldout_files} other files held out")
    with report.training(seconds, zlib) as show:
        train(model, source, seconds, show)
    curve = report.figures["heldout"]
    first, last = curve[0]["bits_per_byte"], curve[-1]["bits_per_byte"]
    verdict = f"{zlib - last:.3f} below" if last < zlib else f"{last - zlib:.3f} above"
    report.check("learned", last < first, f"held-out bits per byte {first:.3f} -> {last:.3f}: {verdict} zlib -9, "
                 f"which has {zlib:.3f} on the same bytes and has seen no others\n")


def _generate(report: Report, model: ByteModel, source: text.Text, seed: int) -> None:
    sample = generate.generate(model, _PROMPT, _SAMPLE, seed).decode("utf-8", "replace")
    report.figures["sample"] = sample
    report.say(f"{_SAMPLE} bytes, decoded one by one:\n\n{_PROMPT.decode()}{sample}\n")
    error = generate.streaming_error(model, source.heldout[:1024].view(4, 256))
    report.figures["streaming"] = {"error": error, "bound": generate.STREAMING_BOUND}
    report.check("streaming", error <= generate.STREAMING_BOUND,
                 f"streaming logits against the parallel form's: {error:.1e} of the largest "
                 f"(bound {generate.STREAMING_BOUND:.0e})")


@torch.no_grad()
def _save(report: Report, model: ByteModel, source: text.Text, path: Path) -> None:
    checkpoint.save(model, path)
    loaded = checkpoint.load(path)
    batch = source.heldout[:512].view(2, 256)
    equal = torch.equal(model(batch, model.init_state(2))[0], loaded(batch, loaded.init_state(2))[0])
    report.figures["model"] = str(path)
    report.check("checkpoint", equal,
                 f"saved {path} ({path.stat().st_size / 1e6:.1f} MB); loaded again, its logits are equal")
