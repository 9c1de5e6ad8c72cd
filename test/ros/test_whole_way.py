"""Shipped robots the whole way over DDS: recorded, converted, trained, run."""

import re
import threading

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

import rclpy  # noqa: E402
from playing import Player  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from toy_cell import ToyCell, set_points  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.convert import Options, convert  # noqa: E402
from diffusion_policy_ros.data.dataset import ACTION, Dataset  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402
from diffusion_policy_ros.ros.episode_recorder import EpisodeRecorder  # noqa: E402
from diffusion_policy_ros.ros.policy_node import PolicyNode  # noqa: E402
from diffusion_policy_ros.train.trainer import train  # noqa: E402

pytestmark = pytest.mark.ros
RECIPE = """
name: tiny
policy:
  n_obs_steps: 2
  horizon: 8
  n_action_steps: 4
  num_train_timesteps: 20
  num_inference_steps: 2
  replan_steps: 2
  prediction_type: sample
  denoiser: {name: mlp}
  image_encoder: {name: small_conv, keypoints: 4, features: 0}
training:
  batch_size: 8
  updates: 20
  lr: 5.0e-3
  warmup_updates: 3
  val_every: 0
  checkpoint_every: 0
  validation_fraction: 0.0
  threads: 1
"""
PATIENCE = {"chunk_timeout_s": 20, "observation_timeout_s": 20, "hold_s": 20}


def patient(name):
    """A shipped contract of which nothing times out because a machine is busy."""
    text = Contract.load(name).text
    for key, seconds in PATIENCE.items():
        text = re.sub(rf"{key}: [\d.]+", f"{key}: {seconds}", text)
    text = re.sub(r"settle_s: .*\n", "", text)
    return Contract.from_text(text.replace("\nanchor:", "\nsettle_s: 2.0\nanchor:"))


class Nodes:
    """Nodes in this process, in a context of their own, on a thread."""

    def __init__(self, domain):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain.domain)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._thread = threading.Thread(target=self._executor.spin)
        self._made = []

    def make(self, kind, **parameters):
        """A node with parameters."""
        given = [Parameter(name, value=value) for name, value in parameters.items()]
        node = kind(context=self.context, parameter_overrides=given)
        self._made.append(node)
        self._executor.add_node(node)
        return node

    def spin(self):
        """Begin."""
        self._thread.start()

    def end(self):
        """Be no more."""
        self._executor.shutdown()
        self._thread.join(20)
        for node in self._made:
            (node.end if isinstance(node, PolicyNode) else node.destroy_node)()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def nodes(domain):
    """It makes nodes."""
    nodes = Nodes(domain)
    yield nodes
    nodes.end()


@pytest.mark.parametrize(
    "name", ["ur5e_tf_wrench", "franka_depth", "two_arms", "mobile_manipulator"]
)
def test_recorded_converted_trained_and_run(domain, nodes, tmp_path, name):
    """What the robot is told in the end was learned from what it was shown."""
    contract = patient(name)
    path = tmp_path / "contract.yaml"
    path.write_text(contract.text)
    cell = ToyCell(domain, contract)
    nodes.make(EpisodeRecorder, contract=str(path), out=str(tmp_path / "bags"))
    nodes.spin()
    began = domain.until(
        lambda: (a := domain.call("/episode_recorder/start")).success and a, why="it starts"
    )
    assert "without" not in began.message
    last = cell.ticks + 35
    domain.until(lambda: cell.ticks > last, why="it is shown")
    stopped = domain.call("/episode_recorder/stop")
    assert stopped.success, stopped.message

    bags, keep = [tmp_path / "bags" / "episode_0000"], Options(keep_idle=True, max_gap_frames=20)
    report = convert(bags, contract, tmp_path / "data", options=keep)
    assert report.frames > 20 and report.episodes == 1, report.bags[0].lines()
    shown = Dataset(tmp_path / "data").episode(0)
    follows_states(contract, shown)

    run = train(tmp_path / "data", Recipe.from_text(RECIPE), tmp_path / "run", say=lambda _: None)
    cell.follow()
    policy = nodes.make(PolicyNode, checkpoint=str(run), engine="eager", threads=1)
    assert policy.bring_up()
    player = Player(domain, contract=path, armed=True)
    player.until_says("playing")
    for topic, heard in cell.told.items():
        domain.until(lambda heard=heard: len(heard) > 10, 60, f"{topic} is told")
    for output in contract.outputs:
        for part, value in set_points(output, cell.told[output.topic][-1], contract).items():
            if part.role in ("position", "joints", "scalar") and part.state:
                seen = shown[part.state]
                low, high = seen.min(axis=0) - 0.02, seen.max(axis=0) + 0.02
                assert (low <= value).all() and (value <= high).all(), (part.name, value)


def follows_states(contract, shown):
    """Actions are where the robot was next, as it was led."""
    slices = contract.action.slices
    for part in contract.action.fields:
        if part.role in ("position", "joints", "scalar"):
            after, told = shown[part.state][1:], shown[ACTION][:-1, slices[part.name]]
            apart = np.abs(told - after)  # a goal that holds for three frames is right in one
            assert np.quantile(apart, 0.25) < 1e-3 and apart.max() < 0.04, part.name
            assert np.ptp(told, axis=0).min() > 0.02, part.name
