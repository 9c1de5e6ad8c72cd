"""Nothing is half armed: what fails in a transition leaves no publisher active, and no trace."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

import rclpy  # noqa: E402
from nodes import Policy  # noqa: E402
from rcl_interfaces.msg import SetParametersResult  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.lifecycle import TransitionCallbackReturn  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.ros.policy_node import PolicyNode  # noqa: E402

pytestmark = pytest.mark.ros
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@pytest.fixture
def node(domain, checkpoint):
    """The policy node, here, in a context of its own."""
    context = Context()
    rclpy.init(context=context, domain_id=domain.domain)
    arguments = ["--ros-args", "-p", f"checkpoint:={checkpoint}", "-p", "threads:=1"]
    node = PolicyNode(context=context, cli_args=[*arguments, "-p", "engine:=eager"])
    yield node
    node.end()
    rclpy.try_shutdown(context=context)


class Watched(Policy):
    """What a node publishes that somebody else has started."""

    def start(self, domain, parameters):
        """It is there."""


def chunk_publishers(node):
    """Its publishers of chunks."""
    return [each for each in node.publishers if each.topic_name.endswith("/action_chunk")]


def test_an_activation_that_fails_leaves_nothing_active(domain, robot, node, monkeypatch):
    """No thread to be had: no hold and no chunk is published; the next attempt arms it whole."""
    watched = Watched(domain, "")
    assert node.trigger_configure() == SUCCESS

    def fails():
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(node.link.runner, "start", fails)
        assert node.trigger_activate() == FAILURE
    assert not any(publisher.is_activated for publisher in chunk_publishers(node))
    assert not node.link.loop.active
    node._report()
    assert "can't start new thread" in watched.until_says("can't start").message
    assert not watched.outputs
    assert node.trigger_activate() == SUCCESS
    assert all(publisher.is_activated for publisher in chunk_publishers(node))
    watched.until_holds()


def test_a_configuration_that_fails_leaves_no_publisher(node, monkeypatch):
    """Whatever had been built by then is gone, and it configures when it can."""
    from diffusion_policy_ros.ros.robot_link import RobotLink

    def fails(link, on):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(RobotLink, "set_hold", fails)
        assert node.trigger_configure() == FAILURE
    assert node.link is None and not chunk_publishers(node)
    assert node.trigger_configure() == SUCCESS
    assert len(chunk_publishers(node)) == 1


def test_a_parameter_that_another_refuses_does_not_take_effect(node):
    """The callback asks whether it may be set; what is set in the end takes effect."""
    assert node.trigger_configure() == SUCCESS
    asked = []

    def refuse(parameters):
        asked.extend(parameters)
        return SetParametersResult(successful=False, reason="not today")

    # The one that was added last is asked first.
    node.remove_on_set_parameters_callback(node._on_set_parameters)
    node.add_on_set_parameters_callback(refuse)
    node.add_on_set_parameters_callback(node._on_set_parameters)
    changes = [Parameter("num_inference_steps", value=7), Parameter("seed", value=5)]
    assert node.set_parameters_atomically(changes).reason == "not today" and len(asked) == 2
    assert node.link.loop.sampling.num_inference_steps == 2
    assert node.get_parameter("num_inference_steps").value == 2
    node.remove_on_set_parameters_callback(refuse)
    assert node.set_parameters_atomically(changes).successful
    assert node.link.loop.sampling.num_inference_steps == 7 and node.link.loop.noise_seed == 5


def test_only_what_has_no_stamp_is_said_to_have_none():
    """Transforms have one each."""
    text = (Path(__file__).parents[2] / "config/contracts/ur5e_tf_wrench.yaml").read_text()
    contract, warnings = Contract.from_text(text), []
    node = SimpleNamespace(get_logger=lambda: SimpleNamespace(warning=warnings.append))
    PolicyNode._warn_of_unstamped(node, contract)
    assert any(stream.tf for stream in contract.observations.values()) and not warnings
