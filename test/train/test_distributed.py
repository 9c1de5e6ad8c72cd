"""Several processes train what one trains."""

import importlib
import os
import shutil
import socket
import subprocess
import sys
import traceback
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import run_checkpoints
from diffusion_policy_ros.train.distributed import Peers, peers
from diffusion_policy_ros.train.trainer import train


@pytest.fixture
def together(forked):
    """Call a function in two processes as torchrun starts them: what they said, how they ended."""

    def run(folder, function):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        both = [
            forked(target=_one, args=(rank, port, folder / f"said_{rank}", function))
            for rank in range(2)
        ]
        for process in both:
            process.start()
        for process in both:
            process.join()
        said = [(folder / f"said_{rank}").read_text() for rank in range(2)]
        return said, [process.exitcode for process in both]

    return run


def _one(rank, port, path, function):
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{key: str(n) for key, n in where.items()}}
    code = 0
    with path.open("w") as file:
        try:
            function(say=lambda line: print(line, file=file, flush=True))
        except UserError as error:
            code = 2
            print(error, file=file)
        except Exception:
            code = 1
            traceback.print_exc(file=file)
        if left := [name for name in _threads() if "gloo" in name]:
            code = 3
            print("still at work, so Python could not end:", *left, file=file)
    raise SystemExit(code)


def _threads():
    return [open(f"/proc/self/task/{n}/comm").read() for n in os.listdir("/proc/self/task")]


def assert_close(one, two):
    """Weights, averages and both moments of two checkpoints, to 1e-5."""
    for name in ("weights.safetensors", "training_state.safetensors"):
        tensors, others = load_file(one / name), load_file(two / name)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(others[key], tensor, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("network", "parts"), [("changed", 1), ("with_dropout", 1), ("with_dropout", 2)]
)
def test_two_processes_train_the_weights_of_one(
    dataset, request, tmp_path, together, network, parts
):
    """The same global batch, padding masked; resumed in two processes, too; one of them speaks."""
    recipe = request.getfixturevalue(network)
    alone = recipe(updates=4, checkpoint_every=2, keep_checkpoints=0)
    alone = train(dataset, alone, tmp_path / "alone", progress="none", say=len)
    several = recipe(
        updates=4, checkpoint_every=2, keep_checkpoints=0, gradient_accumulation=parts
    )
    both = partial(train, dataset, several, tmp_path / "two", progress="lines")
    said, ended = together(tmp_path, both)
    assert ended == [0, 0], said
    assert "in 2 processes" in said[0] and said[1] == ""
    first, last = run_checkpoints(tmp_path / "two")
    assert (first.name, last.name) == ("update_000002", "update_000004")
    assert_close(last, alone)
    shutil.rmtree(last)
    said, ended = together(tmp_path, partial(both, resume=True))
    assert ended == [0, 0], said
    assert_close(run_checkpoints(tmp_path / "two")[-1], alone)


def test_torchrun_starts_them(dataset, changed, tmp_path):
    """By the command that people type; it comes to its end, and one process says how it went."""
    path = tmp_path / "recipe.yaml"
    path.write_text(changed(updates=2).to_text())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "diffusion_policy_ros.cli.main", "train"]
    words = ["--dataset", dataset, "--config", path, "--out", tmp_path / "run"]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stdout
    assert done.stdout.count("dataset   ") == done.stdout.count("trained   2 updates") == 1


def _alone_at_the_end(say):
    with peers("cpu", 8) as group:
        importlib.import_module("torch._dynamo")  # as the trainer does, once the group is there
        group.wait()
        assert any("gloo" in name for name in _threads())


def test_nothing_is_at_work_when_the_group_is_left(tmp_path, together):
    """No thread of the group outlives it: one that does aborts the process as Python ends."""
    said, ended = together(tmp_path, _alone_at_the_end)
    assert ended == [0, 0], said


def _drifted(say):
    with peers("cpu", 8) as group:
        weights = [torch.ones(3), torch.arange(4.0)]
        group.check_equal(weights)
        weights[1][2] += 1e-6 * group.rank
        group.check_equal(weights)


def test_processes_that_have_drifted_apart_are_stopped(tmp_path, together):
    """A weight's last bits differ: a line that says so, not two policies."""
    said, ended = together(tmp_path, _drifted)
    assert ended == [2, 2]
    assert all("the processes' weights are no longer equal" in words for words in said)


def _failing(say, dataset, recipe, out):
    def fail(module, inputs):
        raise MemoryError("no room")

    torch.nn.modules.module.register_module_forward_pre_hook(fail)
    train(dataset, recipe, out, progress="none", say=say)


def test_processes_that_fail_end(dataset, recipe, tmp_path, together):
    """In the midst of an update: with the reason, and without waiting for each other for ever."""
    out = tmp_path / "run"
    said, ended = together(tmp_path, partial(_failing, dataset=dataset, recipe=recipe, out=out))
    assert all("no room" in words for words in said)
    assert ended == [1, 1], said


def test_fewer_windows_than_processes_are_refused(dataset, changed, tmp_path, together):
    """By name, with the cure, before anything is written."""
    out = tmp_path / "run"
    said, ended = together(tmp_path, partial(train, dataset, changed(batch_size=1), out))
    assert ended == [2, 2]
    assert "training.batch_size: 1 windows for 2 processes; raise it" in said[0]
    assert not out.exists()


@pytest.mark.parametrize(("windows", "count"), [(16, 2), (7, 3), (5, 5)])
def test_parts_make_the_batch(windows, count):
    """Each window is in one part, and none is empty."""
    parts = [Peers(rank=rank, count=count).part(windows) for rank in range(count)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(windows))
    assert all(part.stop > part.start for part in parts)
