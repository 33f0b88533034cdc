"""Training over several processes: the losses of one process, and whole checkpoints whoever dies."""

from __future__ import annotations

import pytest
import tasks_example
import torch
from worlds import Error, World

from portable_gla.demo import checkpoint


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("size", (2, 3))
def test_the_losses_are_those_of_one_process(world, seed, size, dtype, bound):
    alone = tasks_example.losses(0, 1, seed, 301, 6, dtype)
    assert alone[-1] < alone[0]
    for losses in world(size).run("tasks_example:losses", seed, 301, 6, dtype):
        assert losses == pytest.approx(alone, rel=bound, abs=0)


@pytest.mark.parametrize("victim, writing", [(1, False), (0, False), (0, True)])
def test_a_checkpoint_is_whole_whoever_dies(seed, tmp_path, victim, writing):
    found = World(2, 4.0)
    try:
        found.start("tasks_example:dies", seed, str(tmp_path), victim, writing)
        error = found.result(1 - victim, 60)
        assert isinstance(error, Error) and error.kind == "RankFailure", vars(error)
        assert error.attributes["missing"] == (victim,)
    finally:
        for process in found.processes:
            process.kill()
        found.close()
    path = tmp_path / "model.safetensors"
    assert checkpoint.load(path).config == tasks_example.CONFIG
    others = [each.name for each in tmp_path.iterdir() if each != path]
    assert others == ([".model.safetensors.partial"] if writing else [])
    checkpoint.save(checkpoint.load(path), path)  # and the next one clears what a killed process left
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
