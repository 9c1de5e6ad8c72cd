"""A replay makes the node's frames, whichever of a camera's pictures those were of."""

import numpy as np
import pytest
from made_bags import header, pose

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, serialize
from diffusion_policy_ros.engine import build_engine
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.replay.figures import against_live
from diffusion_policy_ros.replay.policy import Policy, to_horizon
from diffusion_policy_ros.replay.recording import replay_bag
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.sampling import Sampling

CONTRACT = Contract.from_text("""
name: quick_camera
rate_hz: 15
anchor: a
observations:
  a: {topic: /a, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields: [{name: translation, kind: delta_position, state: a}]
  record: next_state
""")
TINY = """
policy:
  num_inference_steps: 2
  replan_steps: 2
  denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}
"""
CHUNKS, REPORTS = "/policy_node/action_chunk", "/diagnostics"
TRAJECTORY, DIAGNOSTICS = (
    "trajectory_msgs/msg/JointTrajectory",
    "diagnostic_msgs/msg/DiagnosticArray",
)


def chunk_message(chunk):
    """As the node publishes it."""
    point, duration = (
        message_types("trajectory_msgs/msg/JointTrajectoryPoint"),
        message_types("builtin_interfaces/msg/Duration"),
    )
    none, start = np.zeros(0), duration(sec=0, nanosec=0)
    points = [
        point(
            positions=np.asarray(action, np.float64),
            velocities=none,
            accelerations=none,
            effort=none,
            time_from_start=start,
        )
        for action in chunk.actions
    ]
    return message_types(TRAJECTORY)(
        header=header(chunk.stamp_ns), joint_names=CONTRACT.action_names, points=points
    )


def report_message(ns, loop):
    """A node's diagnostics, of which a replay reads how the chunks were made."""
    told = message_types("diagnostic_msgs/msg/KeyValue")(
        key="newest_chunks", value=str(loop.provenance)
    )
    status = message_types("diagnostic_msgs/msg/DiagnosticStatus")(
        level=0, name="policy_node: policy", message="running", hardware_id="", values=[told]
    )
    return message_types(DIAGNOSTICS)(header=header(ns), status=[status])


@pytest.mark.parametrize("begins", [10, 11])
@pytest.mark.parametrize("reset", [30, 31])
def test_a_camera_of_twice_the_rate(begins, reset, tmp_path):
    """At 30 Hz either half of the pictures may make the frames at 15 Hz.

    Which they are is told by when the node began, and changes when somebody resets it.
    """
    policy = DiffusionPolicy(Recipe.from_text(TINY), CONTRACT)
    settings = policy.recipe.policy
    engine, sampling = build_engine(policy, "eager", threads=1), Sampling.of(settings)
    now, published = [0], []
    loop = PolicyLoop(
        engine, CONTRACT, settings.n_obs_steps, sampling, published.append, lambda: now[0], seed=3
    )
    loop.start(0)
    types = {"/a": "geometry_msgs/msg/PoseStamped", CHUNKS: TRAJECTORY, REPORTS: DIAGNOSTICS}
    with BagWriter(tmp_path / "bag", types) as writer:

        def write(topic, ns, msg):
            writer.write(topic, ns, serialize(types[topic], msg))

        for i in range(70):
            ns = 1_000_000_000 + round(i * 1e9 / 30)
            now[0], msg = ns + 1_000_000, pose(ns, (0.01 * i, np.sin(i), 0.2))
            if i == reset:
                loop.reset(now[0])
            published.clear()
            loop.push("/a", msg, now[0])
            if (request := loop.due()) is not None:
                loop.take(loop.infer(request))
            if i >= begins:
                write("/a", now[0], msg)
                for chunk in published:
                    write(CHUNKS, now[0] + 1, chunk_message(chunk))
        write(REPORTS, now[0] + 2, report_message(now[0], loop))
    replaying = Policy(engine, to_horizon(sampling, settings.predicted_steps))
    found = against_live([replay_bag(tmp_path / "bag", replaying)])
    assert found["same"] == found["compared"] >= found["chunks"] - 1 >= 13, found
