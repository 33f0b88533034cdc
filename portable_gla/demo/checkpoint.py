"""Models on disk: safetensors, with the sizes in its metadata. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch

from portable_gla.demo.model import ByteModel, Config

_FORMAT = "portable_gla.demo"


class CheckpointError(ValueError):
    """A file that is no whole checkpoint of a :class:`~portable_gla.demo.model.ByteModel`; the message says why."""


def save(model: ByteModel, path: Path) -> None:
    """Write a model's weights and sizes; a file that is there is replaced at once, when the new one is whole.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    OSError
        If it cannot be written; nothing is left then, and what was there stays.
    """
    from safetensors.torch import save_file

    tensors = {name: x.detach().contiguous().cpu() for name, x in model.state_dict().items()}
    partial = path.with_name(f".{path.name}.partial")  # one name: what a killed process left is written over
    try:
        save_file(tensors, partial, {"format": _FORMAT, "config": json.dumps(dataclasses.asdict(model.config))})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, backend: str | None = None) -> ByteModel:
    """Read what :func:`save` wrote.

    Raises
    ------
    CheckpointError
        If the file is truncated, of another format (a pickle, say), or another model's.
    FileNotFoundError
        If it is not there.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path}: truncated, damaged or not a safetensors file ({error})") from error
    model = _empty(path, _config(path, metadata), backend)
    expected = model.state_dict()
    missing, foreign = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or foreign:
        raise CheckpointError(f"{path}: another model's tensors: "
                              f"missing {', '.join(missing) or 'none'}; foreign {', '.join(foreign) or 'none'}")
    for name, x in expected.items():
        found = tensors[name]
        if found.shape != x.shape or found.dtype != x.dtype:
            raise CheckpointError(f"{path}: {name}: expected {x.dtype} {list(x.shape)}, "
                                  f"got {found.dtype} {list(found.shape)}")
    model.load_state_dict(tensors, assign=True)
    return model


def _empty(path: Path, config: Config, backend: str | None) -> ByteModel:
    """Build a model without memory: what a foreign config asks for is allocated only if the file holds it."""
    try:
        with torch.device("meta"):
            return ByteModel(config, backend)
    except ValueError as error:
        raise CheckpointError(f"{path}: config: {error}") from error


def _config(path: Path, metadata: dict[str, str]) -> Config:
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this demo: its metadata has format "
                              f"{metadata.get('format')!r}, expected {_FORMAT!r}")
    try:
        values = json.loads(metadata.get("config", ""))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its metadata holds no readable config ({error})") from error
    names = {field.name for field in dataclasses.fields(Config)}
    if not isinstance(values, dict) or values.keys() != names:
        raise CheckpointError(f"{path}: config: expected {', '.join(sorted(names))}, got {values!r}")
    for name, value in values.items():
        most = 2**24 if name == "rows" else 2**12
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise CheckpointError(f"{path}: config: {name}: expected an integer from 1 to {most}, got {value!r}")
    return Config(**values)
