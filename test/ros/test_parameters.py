"""Parameters as they are given: numbers, ranges, misspelt names; limits as parameters."""

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from conftest import JOINTS  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.ros import (  # noqa: E402
    action_player,
    episode_recorder,
    policy_parameters,
)
from diffusion_policy_ros.ros.parameters import check_overrides  # noqa: E402

pytestmark = pytest.mark.ros
TWO_LIMITS = JOINTS.replace("[1.0]", "[1.0, 2.0]")


@pytest.fixture
def given(domain):
    """Makes a node that parameters were given for."""
    nodes = []

    def make(**values):
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        nodes.append(Node("n", context=domain.node.context, parameter_overrides=overrides))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_a_whole_number_is_a_number(given):
    """YAML's 1 and 250 are taken where 1.0 and 250.0 are."""
    settings = action_player.declare_settings(given(velocity=1, rate_hz=250))
    assert (settings.limits, settings.rate_hz) == ({"velocity": 1.0}, 250.0)
    node = given(guidance_scale=2)
    policy_parameters.declare(node)
    policy_parameters.forget(node)
    assert policy_parameters.value(node, "guidance_scale") == 2.0


@pytest.mark.parametrize(
    ("declare", "values", "said"),
    [
        (
            action_player.declare_settings,
            {"rate_hz": 5},
            "rate_hz: it is 5.0; give a number from ",
        ),
        (
            action_player.declare_settings,
            {"lead": "far"},
            "lead: it is 'far'; give a number from ",
        ),
        (
            policy_parameters.declare,
            {"threads": -2},
            "it is -2; give a whole number from 0 to 1024",
        ),
        (episode_recorder.declare_settings, {"extra_topics": "/a"}, "give a list as ['/a', '/b']"),
        (policy_parameters.declare, {"seed": 1.5}, "seed: it is 1.5; give a whole number from -1"),
        (policy_parameters.declare, {"sampler": 5}, "sampler: it is 5; give text (How a chunk"),
        (policy_parameters.declare, {"chekpoint": "a"}, "'chekpoint'; did you mean 'checkpoint'?"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(given, declare, values, said):
    """The value, its kind and range, and what it is for: no words of rclpy's."""
    with pytest.raises(UserError) as caught:
        declare(given(**values))
    assert said in str(caught.value) and "Trying" not in str(caught.value)


def test_parameters_of_others_only_warn(given, monkeypatch):
    """A file for all nodes holds more than one node reads; each such name is told once."""
    node, logged = given(checkpoint="a", use_sim_time=False, velocity=1.0), []
    action_player.declare_settings(node)
    monkeypatch.setattr(
        node.get_logger().__class__, "warning", lambda _, text: logged.append(text)
    )
    check_overrides(node)
    assert len(logged) == 1 and "no parameter 'checkpoint'" in logged[0]


def test_a_joint_limit_is_one_number_for_all(given, tmp_path):
    """It replaces the contract's list; without one the contract's stays."""
    (tmp_path / "arm.yaml").write_text(TWO_LIMITS)
    path = str(tmp_path / "arm.yaml")
    settings = action_player.declare_settings(given(contract=path, joint_velocity=0.05))
    assert action_player.playable(settings).action.limits.joint_velocity == (0.05,)
    settings = action_player.declare_settings(given(contract=path, joint_lead=0.1))
    limits = action_player.playable(settings).action.limits
    assert (limits.joint_velocity, limits.joint_lead) == ((1.0, 2.0), (0.1,))


def test_a_limit_that_could_not_act_is_refused(given, tmp_path):
    """With the one that does."""
    (tmp_path / "arm.yaml").write_text(TWO_LIMITS)
    settings = action_player.declare_settings(
        given(contract=str(tmp_path / "arm.yaml"), velocity=0.05)
    )
    with pytest.raises(UserError, match="parameter velocity: .*did you mean 'joint_velocity'"):
        action_player.playable(settings)
