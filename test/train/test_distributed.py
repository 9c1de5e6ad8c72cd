"""Several processes train what one trains."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from diffusion_policy_ros.policy.checkpoint import run_checkpoints
from diffusion_policy_ros.train.distributed import Peers
from diffusion_policy_ros.train.trainer import train

TRAIN = ("-m", "diffusion_policy_ros.cli.main", "train")
ENDS_ALONE = """
import os
from diffusion_policy_ros.train.distributed import peers

def threads():
    return [open(f"/proc/self/task/{n}/comm").read() for n in os.listdir("/proc/self/task")]

with peers("cpu", 8) as group:
    import torch.optim, torch._dynamo  # as the trainer does, once the group is there
    group.wait()
    assert any("gloo" in name for name in threads())
left = [name for name in threads() if "gloo" in name]
assert not left, left
"""


def torchrun(*words, program=TRAIN, processes=2):
    """`torchrun ... PROGRAM WORDS`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", *program]
    return subprocess.run(
        [*command, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def assert_close(one, two):
    """Weights, averages and both moments of two checkpoints, to 1e-5."""
    for name in ("weights.safetensors", "training_state.safetensors"):
        tensors, others = load_file(one / name), load_file(two / name)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(others[key], tensor, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("network", ["changed", "with_dropout"])
def test_two_processes_train_the_weights_of_one(dataset, request, tmp_path, network):
    """The same global batch, padding masked; resumed in two processes, too; one of them speaks."""
    recipe = request.getfixturevalue(network)(updates=8, checkpoint_every=4, keep_checkpoints=0)
    alone = train(dataset, recipe, tmp_path / "alone", progress="none", say=lambda line: None)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_text())
    words = ["--dataset", dataset, "--config", path, "--out", tmp_path / "two"]
    done = torchrun(*words, "--progress", "lines")
    assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stdout
    assert done.stdout.count("dataset   ") == 1
    both = run_checkpoints(tmp_path / "two")
    assert [checkpoint.name for checkpoint in both] == ["update_000004", "update_000008"]
    assert_close(both[-1], alone)
    for file in both[-1].iterdir():
        file.unlink()
    both[-1].rmdir()
    done = torchrun(*words, "--resume")
    assert done.returncode == 0, done.stderr
    assert_close(run_checkpoints(tmp_path / "two")[-1], alone)


def test_nothing_is_at_work_when_the_group_is_left(tmp_path):
    """No thread of the group outlives it: one that does aborts the process as Python ends."""
    (tmp_path / "alone.py").write_text(ENDS_ALONE)
    done = torchrun(program=[tmp_path / "alone.py"])
    assert done.returncode == 0, done.stderr


DRIFTED = """
import torch
from diffusion_policy_ros.train.distributed import peers

with peers("cpu", 8) as group:
    weights = [torch.ones(3), torch.arange(4.0)]
    group.check_equal(weights)
    weights[1][2] += 1e-6 * group.rank
    group.check_equal(weights)
"""


def test_processes_that_have_drifted_apart_are_stopped(tmp_path):
    """A weight's last bits differ: a line that says so, not two policies."""
    (tmp_path / "drifted.py").write_text(DRIFTED)
    done = torchrun(program=[tmp_path / "drifted.py"])
    assert done.returncode != 0
    assert "the processes' weights are no longer equal" in done.stderr


def test_fewer_windows_than_processes_are_refused(dataset, recipe, tmp_path):
    """By name, with the cure, before anything is written."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_text())
    words = ["--dataset", dataset, "--config", path, "--out", tmp_path / "run"]
    done = torchrun(*words, "training.batch_size=1")
    assert done.returncode != 0
    assert "training.batch_size: 1 windows for 2 processes; raise it" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("windows", "count"), [(16, 2), (7, 3), (5, 5)])
def test_parts_make_the_batch(windows, count):
    """Each window is in one part, and none is empty."""
    parts = [Peers(rank=rank, count=count).part(windows) for rank in range(count)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(windows))
    assert all(part.stop > part.start for part in parts)
