"""Parameters as they are given: numbers, ranges, misspelt names; limits as parameters."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from nodes import JOINTS  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402
from diffusion_policy_ros.ros import (  # noqa: E402
    episode_recorder,
    player_parameters,
    policy_parameters,
)
from diffusion_policy_ros.ros.parameters import check_overrides  # noqa: E402
from diffusion_policy_ros.runtime.sampling import Sampling  # noqa: E402

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
    node = given(velocity=1, rate_hz=250)
    assert player_parameters.declare_all(node).rate_hz == 250.0
    assert player_parameters.limits({"velocity": node.get_parameter("velocity").value}) == {
        "velocity": 1.0
    }
    node = given(guidance_scale=2)
    policy_parameters.declare(node)
    policy_parameters.forget(node)
    assert policy_parameters.value(node, "guidance_scale") == 2.0


@pytest.mark.parametrize(
    ("declare", "values", "said"),
    [
        (
            player_parameters.declare_all,
            {"rate_hz": 5},
            "rate_hz: it is 5.0; give a number from ",
        ),
        (
            player_parameters.declare_all,
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
    player_parameters.declare_all(node)
    monkeypatch.setattr(
        node.get_logger().__class__, "warning", lambda _, text: logged.append(text)
    )
    check_overrides(node)
    assert len(logged) == 1 and "no parameter 'checkpoint'" in logged[0]


def restricted(path, **limits):
    """The action of a contract with the limits that parameters give."""
    return Contract.load(path).action.tightened(player_parameters.limits(limits))


def test_a_joint_limit_is_one_number_for_all(tmp_path):
    """It replaces the contract's list; without one the contract's stays."""
    (tmp_path / "arm.yaml").write_text(TWO_LIMITS)
    path = str(tmp_path / "arm.yaml")
    action = restricted(path, joint_velocity=0.05)
    assert action.limits_of(action.fields[0]).velocity == 0.05
    action = restricted(path, joint_lead=0.1, joint_velocity=0.0)
    limits = action.limits_of(action.fields[0])
    assert (limits.velocity, limits.lead) == ((1.0, 2.0), 0.1)


def test_a_limit_that_could_not_act_is_refused(tmp_path):
    """With the ones that do."""
    (tmp_path / "arm.yaml").write_text(TWO_LIMITS)
    with pytest.raises(UserError, match="limit velocity: .*nothing that it limits; did you mean"):
        restricted(tmp_path / "arm.yaml", velocity=0.05)


def test_a_parameter_of_before_says_what_there_is_instead(given):
    """It is not only told to do nothing."""
    with pytest.raises(UserError, match=r"give send: \{type: geometry_msgs/msg/TwistStamped\}"):
        player_parameters.declare_all(given(publish_twist=True))


def test_the_fields_limits_are_parameters(given):
    """Of each field of the contract those that act on it; given ones are taken over."""
    node = given(**{"arm.velocity": 0.2})
    player_parameters.declare_all(node)
    player_parameters.declare_limits(node, Contract.load("mobile_manipulator"))
    assert node.get_parameter("arm.velocity").value == 0.2
    assert node.has_parameter("arm.following_error") and not node.has_parameter("base.lead")


def test_a_task_is_set_live_and_refused_by_name():
    """One that was trained takes effect with the next chunk; of another the near one is said."""
    recipe = Recipe.from_text("policy: {tasks: [pick, place]}")
    loop = SimpleNamespace(
        sampling=Sampling.of(recipe.policy, task="pick"),
        engine=SimpleNamespace(policy=SimpleNamespace(recipe=recipe)),
    )
    policy_parameters.apply(loop, [Parameter("task", value="place")])
    assert loop.sampling.task == "place"
    with pytest.raises(UserError, match="no task 'pikc' was trained; did you mean 'pick'"):
        policy_parameters.checked(loop, [Parameter("task", value="pikc")])
    with pytest.raises(UserError, match="no task is said; give one of: pick, place"):
        policy_parameters.checked(loop, [Parameter("task", value="")])


def test_a_node_for_several_tasks_is_told_which_or_stays_unconfigured(given):
    """It never guesses; for the only one it needs no word."""
    node = given()
    policy_parameters.declare(node)
    with pytest.raises(UserError, match="no task is said"):
        policy_parameters.sampling(node, Recipe.from_text("policy: {tasks: [a, b]}").policy)
    one = Recipe.from_text("policy: {tasks: [pick]}").policy
    assert policy_parameters.sampling(node, one).task == "pick"
    node = given(task="b")
    policy_parameters.declare(node)
    both = Recipe.from_text("policy: {tasks: [a, b]}").policy
    assert policy_parameters.sampling(node, both).task == "b"
