"""`diffusion-policy doctor`: what it finds, judges and advises."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from diffusion_policy_ros.cli import doctor
from diffusion_policy_ros.cli.doctor import Check
from diffusion_policy_ros.cli.main import main

HAS_ROS = importlib.util.find_spec("rclpy") is not None
needs_ros = pytest.mark.skipif(not HAS_ROS, reason="needs rclpy: pip install -e '.[ros]'")
OK, WARN, FAIL = (
    Check("a", "ok", "1"),
    Check("b", "warn", "2", "do"),
    Check("c", "fail", "3", "mend"),
)


def set_checks(monkeypatch, *checks):
    """Let the doctor find exactly these."""
    monkeypatch.setattr(doctor, "checks", lambda: iter(checks))


def only(checks):
    """Return the one finding there is."""
    (check,) = checks
    return check


def loopback(sent=80, received=80, matched=True):
    """Return what `demo/loopback.py` prints, as a dictionary."""
    return {
        "distro": "",
        "rmw": "rmw_fastrtps_cpp",
        "matched": matched,
        "sent": sent,
        "received": received,
        "ages_ms": [2.0] * received,
    }


def test_a_warning_is_no_failure(monkeypatch, capsys):
    """Findings and cures are printed; without a `fail` the exit code is 0."""
    set_checks(monkeypatch, OK, WARN)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok    a: 1\nwarn  b: 2\n      cure: do\n"


def test_a_failure_is_exit_code_1(monkeypatch, capsys):
    """One `fail` makes the exit code 1."""
    set_checks(monkeypatch, OK, FAIL, WARN)
    assert main(["doctor"]) == 1
    assert "fail  c: 3\n      cure: mend\n" in capsys.readouterr().out


def test_json_has_every_finding(monkeypatch, capsys):
    """`--json` prints one object and nothing else."""
    set_checks(monkeypatch, OK, FAIL)
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["checks"][1] == {"name": "c", "level": "fail", "found": "3", "cure": "mend"}


@pytest.mark.parametrize(
    ("result", "level", "words"),
    [
        (loopback(), "ok", "0% lost"),
        (loopback(received=40), "warn", "50% lost"),
        (loopback(sent=0, received=0, matched=False), "fail", "did not find"),
        (loopback(received=0), "fail", "did not find"),
    ],
)
def test_images_are_judged_by_their_losses(result, level, words):
    """Lost images are a warning that names the profile; none at all is a failure."""
    check = doctor.judge_images(result)
    assert (check.level, words in check.found) == (level, True)
    assert ("fastdds_large_images.xml" in check.cure) == (level == "warn")


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        ({}, "ok"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": "42"}, "ok"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}, "warn"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "HOME"}, "warn"),
        ({"ROS_DOMAIN_ID": "233"}, "fail"),
        ({"ROS_DOMAIN_ID": "two"}, "fail"),
    ],
)
def test_discovery_is_read_from_the_environment(variables, level, monkeypatch):
    """Domain and range are shown; values that let nobody be found are told with the cure."""
    for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_DOMAIN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check = only(doctor.check_discovery())
    assert check.level == level
    assert bool(check.cure) == (level != "ok")


@pytest.mark.parametrize(
    ("rclpy", "variable"),
    [("7.1.5", doctor.PROFILE_VARIABLES[1]), ("9.1.2", doctor.PROFILE_VARIABLES[0])],
)
def test_the_profile_is_checked_under_the_name_that_is_read(
    rclpy, variable, monkeypatch, tmp_path
):
    """Jazzy reads another variable than Kilted; the other one, or a broken file, is told."""
    monkeypatch.setattr(doctor, "installed_version", lambda name: rclpy)
    for name in doctor.PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    other = next(name for name in doctor.PROFILE_VARIABLES if name != variable)
    broken = tmp_path / "broken.xml"
    broken.write_text("<dds>")

    assert only(doctor.check_profile()).level == "ok"
    monkeypatch.setenv(other, str(broken))
    assert only(doctor.check_profile()).cure == f"export {variable}={broken}"
    monkeypatch.setenv(variable, str(broken))
    assert only(doctor.check_profile()).level == "fail"
    monkeypatch.setenv(variable, str(tmp_path / "missing.xml"))
    assert only(doctor.check_profile()).level == "fail"
    monkeypatch.setenv(variable, str(doctor.shipped_path("config/fastdds_large_images.xml")))
    assert only(doctor.check_profile()).level == "ok"


@pytest.mark.parametrize(
    ("head", "interpreter"),
    [
        ("#!/a/b/python3\nimport sys\n", "/a/b/python3"),
        ("#!/bin/sh\n'''exec' \"/a b/python3\" \"$0\" \"$@\"\n' '''\n", "/a b/python3"),
        ("#!/bin/sh\n'''exec' /a/b/python3 \"$0\" \"$@\"\n' '''\n", "/a/b/python3"),
    ],
)
def test_a_scripts_interpreter_is_read(head, interpreter, tmp_path):
    """Both forms that installers write are understood."""
    script = tmp_path / "policy_node"
    script.write_text(head)
    assert doctor.script_interpreter(script) == interpreter


def test_a_script_whose_python_has_no_torch_fails(tmp_path, monkeypatch):
    """A node that colcon installed for another interpreter is found through AMENT_PREFIX_PATH."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n"
    )
    python.chmod(0o755)
    script = tmp_path / "lib" / "diffusion_policy_ros" / "policy_node"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{python}\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    check = next(c for c in doctor.check_scripts() if str(script) in c.found)
    assert check.level == "fail"
    assert "No module named 'torch'" in check.found
    assert "colcon-over-venv" in check.cure


def test_an_interpreter_that_is_gone_is_told(tmp_path):
    """A script of a removed environment gives a finding, not a traceback."""
    output, error = doctor.run_python(str(tmp_path / "python"), "pass")
    assert output == ""
    assert "No such file" in error


def test_without_openvino_the_cure_is_told(monkeypatch):
    """A robot without a GPU would run its policy several times slower and never know."""
    monkeypatch.setattr(doctor, "installed_version", lambda name: "")
    check = only(doctor.check_engine())
    assert check.level == "warn" and check.cure.startswith("pip install openvino")


def test_an_openvino_that_converts_nothing_is_no_engine(monkeypatch):
    """Installed without what its front end imports, it is there and of no use."""
    monkeypatch.setattr(doctor, "installed_version", lambda name: "2026.4")
    said = "ModuleNotFoundError: No module named 'packaging'"
    monkeypatch.setattr(doctor, "run_python", lambda *_: ("", said))
    check = only(doctor.check_engine())
    assert check.level == "warn" and said in check.found and "[openvino]" in check.cure
    monkeypatch.setattr(doctor, "run_python", lambda *_: ("a small network converted", ""))
    assert only(doctor.check_engine()).level == "ok"


def test_this_environment_has_no_failure_without_dds(monkeypatch):
    """Python, libraries, torch, buffers and scripts are fine where the tests run."""
    groups = (
        doctor.check_python,
        doctor.check_libraries,
        doctor.check_torch,
        doctor.check_buffers,
        doctor.check_scripts,
    )
    failures = [check for group in groups for check in group() if check.level == "fail"]
    assert failures == []


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs mujoco")
def test_opengl_draws_a_frame_or_tells_the_cure():
    """The simulator's camera is tried in a process of its own."""
    check = only(doctor.check_opengl())
    assert check.level == "ok" or "libegl1" in check.cure


@pytest.fixture
def cross():
    """Sends images from one process to another, in a domain of the test's own."""
    from diffusion_policy_ros.demo.domains import free_domain

    environment = {k: v for k, v in os.environ.items() if k not in doctor.PROFILE_VARIABLES}
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

    def measure(**variables):
        done = subprocess.run(
            [sys.executable, "-m", "diffusion_policy_ros.demo.loopback"],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    with free_domain() as number:
        environment["ROS_DOMAIN_ID"] = str(number)
        yield measure


@pytest.mark.ros
@needs_ros
def test_images_cross_real_dds(cross):
    """Two processes find each other."""
    result = cross()
    assert result["matched"] and result["received"] > 0


@pytest.mark.ros
@needs_ros
def test_with_the_shipped_profile_no_image_of_a_real_size_is_lost(cross):
    """Where the reader is not let read, on a busy machine, some are lost all the same: then again.

    Without the profile every large image may lose a part, however often one tries.
    """
    path = str(doctor.shipped_path("config/fastdds_large_images.xml"))
    results = (cross(**{doctor.profile_variable(): path}) for _ in range(10))
    assert any(result["received"] >= 0.95 * result["sent"] > 0 for result in results)
