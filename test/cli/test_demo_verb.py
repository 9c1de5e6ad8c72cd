"""`diffusion-policy demo`: what it refuses before it works for minutes."""

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from diffusion_policy_ros.cli import demo
from diffusion_policy_ros.cli.main import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--episodes", "0"], "episodes must be 1 or more"),
        (["--demonstrations", "-3"], "demonstrations must be 1 or more"),
        (["training.update=5"], "did you mean 'updates'?"),
        (["--engine", "eagre"], "did you mean 'eager'?"),
        (["--engine", "eager", "--dtype", "f8"], "computes in f32"),
        (["--json", "/dev/null/figures.json"], "cannot be written"),
    ],
)
def test_a_mistake_is_found_before_the_first_stage(tmp_path, monkeypatch, words, expected, capsys):
    """One line, exit code 2, and nothing recorded."""
    monkeypatch.setattr("diffusion_policy_ros.cli.demo._check_parts", lambda: None)
    assert main(["demo", "--state", "--out", str(tmp_path / "demo"), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "demo").exists()


def test_engine_and_precision_are_the_nodes(tmp_path, monkeypatch):
    """What is given goes on to the node; what is not, it chooses itself."""
    started = []

    def node(name, out, environment, parameters):
        started.append((name, parameters))
        return nullcontext()

    monkeypatch.setattr(demo, "_node", node)
    monkeypatch.setattr(demo, "_listen", lambda *_: demo.Drive())
    for stage in ("_check_parts", "_record", "_convert", "_finish"):
        monkeypatch.setattr(demo, stage, lambda *_: None)
    monkeypatch.setattr(demo, "_train", lambda *_: tmp_path)
    words = ["demo", "--state", "--out", str(tmp_path)]
    assert main([*words, "--engine", "eager", "--dtype", "f32"]) == 0
    assert main(words) == 0
    told, free = [parameters for name, parameters in started if name == "policy_node"]
    assert told == {**free, "engine": "eager", "dtype": "f32"}
    assert free == {"checkpoint": tmp_path, "threads": 1}


def test_what_a_node_is_told_arrives(tmp_path, monkeypatch):
    """ROS reads parameters as YAML: no GIF of a simulator without pictures, and any path."""
    told = {"gif": "", "out": Path("run #2: ü"), "sim": "12", "seed": 7, "cameras": False}
    commands = []

    def begun(command, **_):
        commands.append(command)
        return SimpleNamespace(terminate=lambda: None, wait=lambda _: 0)

    monkeypatch.setattr(demo.subprocess, "Popen", begun)
    with demo._node("sim_robot", tmp_path, dict(os.environ), told):
        words = [word.partition(":=") for word in commands[0] if ":=" in word]
    found = {key: yaml.safe_load(value) for key, _, value in words}
    assert found == {**told, "out": "run #2: ü"}
