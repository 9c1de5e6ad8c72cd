"""A policy of another project as the node's: its own project's chunks, and a moving arm."""

import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from geometry_msgs.msg import PoseStamped  # noqa: E402
from nodes import Policy  # noqa: E402
from stepped import SteppedPolicy, SteppedRobot  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.interop.importing import import_checkpoint  # noqa: E402
from diffusion_policy_ros.ros.message_types import message_class  # noqa: E402
from diffusion_policy_ros.sim.stamped import Stamper, ros_array  # noqa: E402

pytestmark = pytest.mark.ros
GOLDEN = Path(__file__).parents[1] / "golden" / "interop" / "policy_two_cameras"
NOISE = Path(__file__).with_name("golden_noise.py")
JOINTS = [f"joint_{i}" for i in range(8)]
PICTURE = "type: sensor_msgs/msg/Image, shape: [64, 64, 3]"
TOY = f"""
name: toy
rate_hz: 20
anchor: front
observations:
  front: {{topic: /front, {PICTURE}, resize: none}}
  state: {{topic: /joint_states, type: sensor_msgs/msg/JointState, names: {JOINTS}}}
  wrist_cam: {{topic: /wrist, {PICTURE}, resize: none}}
action:
  fields: [{{name: arm, kind: joint_position, size: 7}}]
  record: {{topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}}
"""
ARM = f"""
name: simulated_arm
rate_hz: 20
anchor: front
observations:
  front: {{topic: /agentview/image_raw, {PICTURE}}}
  wrist_cam: {{topic: /eye_in_hand/image_raw, {PICTURE}}}
  position: {{topic: /eef_pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  turn: {{topic: /eef_pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
  finger: {{topic: /gripper/joint_states, type: sensor_msgs/msg/JointState, names: [left]}}
action:
  fields:
    - {{name: translation, kind: delta_position, state: position}}
    - {{name: rotation, kind: delta_axis_angle, state: turn}}
    - {{name: gripper, kind: binary}}
  record: {{topic: /eef_command, type: trajectory_msgs/msg/JointTrajectory, shape: [7]}}
  limits: {{translation: 0.01, rotation: 0.1, lead: 0.05, workspace_min: [-0.3, -0.3, 0.0],
    workspace_max: [0.3, 0.3, 0.45]}}
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A function: contract -> the checkpoint that LeRobot's policy becomes with it."""
    source = tmp_path_factory.mktemp("lerobot")
    for path in GOLDEN.iterdir():
        shutil.copyfile(path, source / path.name)
    with lzma.open(source / "model.safetensors.xz") as packed:
        (source / "model.safetensors").write_bytes(packed.read())

    def make(text):
        out = tmp_path_factory.mktemp("runs") / "imported"
        return import_checkpoint(source, Contract.from_text(text), out)

    return make


class GoldenRobot(SteppedRobot):
    """Publishes the frames that LeRobot's policy was shown."""

    def __init__(self, domain, arrays):
        self._arrays, self._frame = arrays, -1
        super().__init__(domain)

    def send(self, stamp):
        """The next frame; the last one stays."""
        shown = {key: self._arrays[f"input/observation.{key}"][0] for key in KEYS}
        self._frame = min(self._frame + 1, len(shown["state"]) - 1)
        front, wrist, state = (shown[key][self._frame] for key in KEYS)
        make = Stamper(stamp, message_class, ros_array)
        for told in (
            make.joints("/joint_states", "base", JOINTS, state),
            make.image("/wrist", "wrist", wrist),
            make.image("/front", "front", front),
        ):
            if told.topic not in self._publishers:
                kind, create = message_class(told.type_name), self.domain.node.create_publisher
                self._publishers[told.topic] = create(kind, told.topic, 10)
            self.publish(told.topic, told.message)


KEYS = ("images.front", "images.wrist_cam", "state")


class GoldenPolicy(SteppedPolicy):
    """With the noise that LeRobot's policy was given."""

    def start(self, domain, parameters):
        how = {"engine": "eager", "threads": 1, **parameters}
        return domain.start(NOISE, GOLDEN / "golden.npz", **how)


def test_its_chunks_over_dds_are_those_of_its_own_project(domain, imported):
    """The same frames and noise: what LeRobot's select_action gave, chunk after chunk."""
    arrays = np.load(GOLDEN / "golden.npz")
    robot = GoldenRobot(domain, arrays)
    policy = GoldenPolicy(domain, robot, imported(TOY), replan_steps=8)
    expected = arrays["select_action/actions"]
    told = []
    for chunk in range(2):
        for _ in range(8 * chunk):
            policy.observe()
        while not (message := policy.next_output()).points:  # it holds until it has a frame
            pass
        told += [list(point.positions) for point in message.points]
    told = np.array(told)[: len(expected)]
    assert np.linalg.norm(told - expected) / np.linalg.norm(expected) < 1e-5


def test_it_drives_the_simulated_arm(domain, imported):
    """Frames of the arm's cameras in, chunks out, and the arm moves."""
    poses = domain.listen(PoseStamped, "/eef_pose")
    # Slower than the wall's clock: a busy machine's chunks are not late.
    domain.start("sim_robot", seed=3, publish_clock=True, speed=0.2)
    how = {"sampler": "ddim", "num_inference_steps": 4, "use_sim_time": True}
    policy = Policy(domain, imported(ARM), **how)
    policy.until_running()

    def place():
        at = poses[-1].pose.position
        return np.array([at.x, at.y, at.z])

    before = place()
    domain.until(lambda: np.linalg.norm(place() - before) > 0.02, why="the arm moves")
