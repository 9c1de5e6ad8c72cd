"""`diffusion-policy contract check`."""

from __future__ import annotations

import pytest

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.shipped import config_names, config_path


@pytest.mark.parametrize("name", config_names("contracts"))
def test_each_shipped_contract_is_described(name, capsys):
    """The table names every stream, every action component and the hash."""
    contract = Contract.load(name)
    assert main(["contract", "check", name]) == 0
    out = capsys.readouterr().out
    assert contract.hash in out
    for stream in contract.observations.values():
        assert stream.name in out
        assert stream.topic in out
        assert "x".join(map(str, stream.shape)) in out
        assert f"{stream.max_age_s:g} s" in out
    for component in contract.action_names:
        assert component in out


def test_a_file_is_checked_as_well_as_a_name(tmp_path, capsys):
    """A path works like a shipped contract's name."""
    path = tmp_path / "mine.yaml"
    path.write_text(config_path("contracts", "mini_lift").read_text())
    assert main(["contract", "check", str(path)]) == 0
    assert Contract.load("mini_lift").hash in capsys.readouterr().out


def test_every_mistake_is_a_line(tmp_path, capsys):
    """Two mistakes give two lines on stderr, exit code 2 and nothing on stdout."""
    path = tmp_path / "bad.yaml"
    text = config_path("contracts", "mini_lift").read_text()
    path.write_text(text.replace("rate_hz: 20", "rate_hz: quick").replace("anchor: ", "ancor: "))
    assert main(["contract", "check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("error: ") for line in lines)
    assert any("rate_hz" in line for line in lines)
    assert any("did you mean 'anchor'" in line for line in lines)


def test_an_unknown_name_lists_the_shipped_ones(capsys):
    """A contract that is neither file nor shipped is refused with the valid names."""
    assert main(["contract", "check", "no_such_arm"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "mini_lift" in err


JOINTS = """
name: joints
rate_hz: 20
anchor: q
observations:
  q: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
action:
  fields: [{name: arm, kind: joint_position, size: 2, state: q}]
  record: next_state
"""


def test_limits_of_what_is_not_commanded_are_refused(tmp_path, capsys):
    """A limit that looks as if it acted is worse than none; each is named, with the one to use."""
    path = tmp_path / "arm.yaml"
    path.write_text(f"{JOINTS}  limits: {{velocity: 0.5, lead: 0.05, joint_velocity: [0.5]}}\n")
    assert main(["contract", "check", str(path)]) == 2
    lines = sorted(capsys.readouterr().err.splitlines(), reverse=True)
    assert len(lines) == 2
    assert "action.limits.velocity" in lines[0] and "'joint_velocity'" in lines[0]
    assert "action.limits.lead" in lines[1] and "joint_lead" in lines[1]
    assert Contract.from_text(path.read_text()).action.limits.velocity == 0.5  # as it was trained


@pytest.mark.parametrize(("limits", "noted"), [("{}", True), ("{joint_velocity: [0.5]}", False)])
def test_a_robot_without_a_limit_of_speed_is_noted(tmp_path, capsys, limits, noted):
    """One line, with the limit to give."""
    path = tmp_path / "arm.yaml"
    path.write_text(f"{JOINTS}  limits: {limits}\n")
    assert main(["contract", "check", str(path)]) == 0
    assert ("note: no arm.velocity limit" in capsys.readouterr().out) is noted


@pytest.mark.parametrize(
    ("limits", "noted"),
    [
        ("{joint_min: [-90, -90], joint_max: [90, 90], joint_velocity: [0.5]}", ["min", "max"]),
        ("{joint_velocity: [180]}", ["velocity"]),
        (
            "{joint_min: [-6.3], joint_max: [6.3], joint_velocity: [3], joint_acceleration: [60]}",
            [],
        ),
    ],
)
def test_limits_in_another_unit_are_noted(tmp_path, capsys, limits, noted):
    """No arm turns by 90 rad; degrees look so, and as limits they are none."""
    path = tmp_path / "arm.yaml"
    path.write_text(f"{JOINTS}  limits: {limits}\n")
    assert main(["contract", "check", str(path)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "in degrees?" in line]
    assert [line.split()[1] for line in said] == [f"arm.{name}" for name in noted]
    assert all(line.endswith("give rad") for line in said)
