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
    alone = tasks_example.losses(0, 1, seed, 117, 4, dtype)
    assert len(set(alone)) == len(alone)  # each step has changed the model
    for losses in world(size).run("tasks_example:losses", seed, 117, 4, dtype):
        assert losses == pytest.approx(alone, rel=bound, abs=0)


def test_the_loss_falls():
    """From one number: over four steps of drawn text some do not."""
    losses = tasks_example.losses(0, 1, 1, 117, 4, torch.float64)
    assert losses[-1] < losses[0]


DEATHS = [(1, False), (0, False), (0, True)]  # who is killed, and whether while it writes


@pytest.fixture(scope="module")
def deaths(seed, tmp_path_factory):
    """The folder that each death leaves, and what the other rank ended with; they happen side by side."""
    worlds = {death: World(2, 4.0) for death in DEATHS}
    folders = {death: tmp_path_factory.mktemp("checkpoint") for death in DEATHS}
    try:
        for death, found in worlds.items():
            found.start("tasks_example:dies", seed, str(folders[death]), *death)
        yield {(victim, writing): (folders[victim, writing], found.result(1 - victim, 60))
               for (victim, writing), found in worlds.items()}
    finally:
        for found in worlds.values():
            for process in found.processes:
                process.kill()
            found.close()


@pytest.mark.parametrize("victim, writing", DEATHS)
def test_a_checkpoint_is_whole_whoever_dies(deaths, victim, writing):
    folder, error = deaths[victim, writing]
    assert isinstance(error, Error) and error.kind == "RankFailure", vars(error)
    assert error.attributes["missing"] == (victim,)
    path = folder / "model.safetensors"
    assert checkpoint.load(path).config == tasks_example.CONFIG
    others = [each.name for each in folder.iterdir() if each != path]
    assert others == ([".model.safetensors.partial"] if writing else [])
    checkpoint.save(checkpoint.load(path), path)  # and the next one clears what a killed process left
    assert [each.name for each in folder.iterdir()] == [path.name]
