"""What the network sees live is what it saw in training: one bag, both ways."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

import rclpy  # noqa: E402
from nodes import TINY  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.data.bags import BagWriter, message_types, serialize  # noqa: E402
from diffusion_policy_ros.data.convert import Options, convert  # noqa: E402
from diffusion_policy_ros.data.dataset import Dataset, WindowDataset  # noqa: E402
from diffusion_policy_ros.data.shards import STAMP  # noqa: E402
from diffusion_policy_ros.policy.checkpoint import save_checkpoint  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402
from diffusion_policy_ros.ros.policy_node import PolicyNode  # noqa: E402
from diffusion_policy_ros.sim.messages import command_message, messages  # noqa: E402

pytestmark = pytest.mark.ros
MS = 1_000_000
FRAMES = 60
SHIPPED = Contract.load("mini_lift").text
# No message may come too late for its frame because this machine is busy: that is not the point.
CONTRACT = Contract.from_text(SHIPPED.replace("rate_hz: 20", "rate_hz: 20\nsettle_s: 2.0"))
LATENCIES_S = {"agentview": 0.02, "eye_in_hand": 0.035}


def with_latencies(contract):
    """The same robot, whose cameras are known to stamp late."""
    text = contract.text
    for camera, seconds in LATENCIES_S.items():
        topic = f"topic: /{camera}/image_raw,"
        text = text.replace(topic, f"{topic} observation_latency_s: {seconds},")
    return Contract.from_text(text)


def record(path):
    """Cameras that jitter, a second one and poses at other times and rates than the first."""
    random = np.random.default_rng(0)
    stamped = []

    def observe(topics, stamp):
        image = random.integers(0, 256, (84, 84, 3), dtype=np.uint8)
        turn = random.normal(size=4)
        position = random.normal(size=3)
        obs = {
            "agentview_image": image,
            "robot0_eye_in_hand_image": image[::-1],
            "robot0_eef_pos": position,
            "robot0_eef_quat": turn / np.linalg.norm(turn),
            "robot0_gripper_qpos": random.normal(size=2),
            "object_pos": position,
            "object_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            "gripper_to_object_pos": position,
        }
        for topic, kind, message in messages(obs, stamp, message_types):
            if topic in topics:
                stamped.append((stamp, topic, kind, message))

    start = 100 * 10**9
    for i in range(FRAMES):
        time = start + i * 50 * MS
        stamp = time + int(random.integers(-8, 8)) * MS
        observe({"/agentview/image_raw"}, stamp)
        observe({"/eye_in_hand/image_raw"}, time - 17 * MS)
        for part in range(4):
            observe({"/eef_pose", "/gripper/joint_states"}, time + part * 12_345_678)
        names = CONTRACT.action_names
        stamped.append(
            (stamp, *command_message(random.normal(size=7), stamp, names, message_types))
        )
    stamped.sort(key=lambda entry: entry[0])
    with BagWriter(path, {topic: kind for _, topic, kind, _ in stamped}) as bag:
        for stamp, topic, kind, message in stamped:
            bag.write(topic, stamp + MS, serialize(kind, message))
    return path


def windows_of_dataset(path):
    """Frame time → window, as training has it."""
    dataset = WindowDataset(path, n_obs_steps=2, horizon=16)
    (episode,) = Dataset(path).episodes
    stamps = Dataset(path).episode(0)[STAMP]
    assert len(stamps) == len(dataset) == episode.frames
    batch = dataset.batch(np.arange(len(dataset)))
    return {
        int(stamp): {key: batch[key][i] for key in CONTRACT.observations}
        for i, stamp in enumerate(stamps)
    }


@pytest.fixture(params=["as stamped", "with latencies"])
def contract(request):
    """The robot, whose stamps are right or are corrected."""
    return CONTRACT if request.param == "as stamped" else with_latencies(CONTRACT)


@pytest.fixture
def node(domain, contract, tmp_path):
    """The policy node, here, in a context of its own."""
    policy = DiffusionPolicy(Recipe.from_text(TINY), contract)
    checkpoint = save_checkpoint(tmp_path / "policy", policy)
    context = Context()
    rclpy.init(context=context, domain_id=domain.domain)
    arguments = ["--ros-args", "-p", f"checkpoint:={checkpoint}", "-p", "threads:=1"]
    arguments += ["-p", "engine:=eager"]
    node = PolicyNode(context=context, cli_args=arguments)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    yield node, thread
    executor.shutdown()
    thread.join(10)
    node.trigger_shutdown()  # or its thread is there when the interpreter ends
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def test_a_bag_gives_the_node_the_windows_that_training_had(domain, node, contract, tmp_path):
    """Images bit for bit, poses to 1e-6, and the same frames, over DDS from another process.

    Also where the contract's latencies say that what is seen was so before its stamp.
    """
    bag = record(tmp_path / "bag")
    convert([bag], contract, tmp_path / "dataset", options=Options(keep_idle=True))
    trained = windows_of_dataset(tmp_path / "dataset")
    node, spinning = node
    script = Path(__file__).with_name("play_bag.py")
    environment = {**os.environ, "ROS_DOMAIN_ID": str(domain.domain)}
    command = [sys.executable, script, bag]
    player = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True)
    try:
        domain.until(
            lambda: all(node.count_publishers(topic) for topic in CONTRACT.topics),
            why="the player is there",
        )
        assert node.bring_up()
        seen = {}
        loop = node.link.loop
        loop.wants = lambda frame: seen.update({frame.time_ns: loop.history.window()})
        spinning.start()
        subscriptions = [s for s in node.subscriptions if s.topic_name in CONTRACT.topics]
        assert len(subscriptions) == len(CONTRACT.topics)
        domain.until(
            lambda: all(subscription.get_publisher_count() for subscription in subscriptions),
            why="the node hears the player",
        )
        player.stdin.write("play\n")
        player.stdin.flush()
        domain.until(lambda: len(seen) >= len(trained), why=f"{len(trained)} frames come")
    finally:
        player.kill()
        player.wait()
    assert sorted(seen) == sorted(trained) and len(seen) > 0.9 * FRAMES
    for time_ns, window in trained.items():
        for key, stream in CONTRACT.observations.items():
            tolerance = 0 if stream.is_image else 1e-6
            np.testing.assert_allclose(seen[time_ns][key], window[key], rtol=0, atol=tolerance)
