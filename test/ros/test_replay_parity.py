"""A run of the node, recorded and replayed, gives the node's chunks."""

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from diffusion_policy_ros.contract import Contract  # noqa: E402
from diffusion_policy_ros.engine import build_engine  # noqa: E402
from diffusion_policy_ros.observe.codecs import stamp_ns  # noqa: E402
from diffusion_policy_ros.policy.checkpoint import load_policy, save_checkpoint  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402
from diffusion_policy_ros.replay.figures import against_live  # noqa: E402
from diffusion_policy_ros.replay.policy import Policy, to_horizon  # noqa: E402
from diffusion_policy_ros.replay.recording import replay_bag  # noqa: E402
from diffusion_policy_ros.runtime.sampling import Sampling  # noqa: E402

pytestmark = pytest.mark.ros
SHIPPED = Contract.load("mini_lift_state").text
# No message may come too late for its frame because this machine is busy: that is not the point.
CONTRACT = SHIPPED.replace("rate_hz: 20", "rate_hz: 20\nsettle_s: 2.0")
TINY = """
policy:
  num_inference_steps: 3
  replan_steps: 2
  sampler: ddpm
  denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}
"""


def test_a_recorded_run_replays_to_the_same_chunks(domain, tmp_path):
    """To 1e-5, whatever frames were skipped, also where chunks are sampled to join with delays.

    Seed, delay and sampling of each chunk are in the recorded diagnostics, so that they may
    change while it runs.
    """
    policy = DiffusionPolicy(Recipe.from_text(TINY), Contract.from_text(CONTRACT))
    checkpoint = save_checkpoint(tmp_path / "policy", policy)
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    domain.start("sim_robot", cameras=False)
    domain.start("policy_node", checkpoint=checkpoint, threads=1, engine="eager")
    domain.start(
        "episode_recorder",
        contract=tmp_path / "contract.yaml",
        out=tmp_path / "bags",
        commands=False,
        extra_topics="['/policy_node/action_chunk', '/diagnostics']",
    )
    chunks = domain.listen(JointTrajectory, "/policy_node/action_chunk")
    domain.until(lambda: sum(bool(c.points) for c in chunks) > 3, why="chunks come")

    def begun():
        said = domain.call("/episode_recorder/start")
        if said.success and " without " in said.message:  # it has not yet found the node
            domain.call("/episode_recorder/discard")
        return said.success and " without " not in said.message

    def record(count):
        since_ns = domain.node.get_clock().now().nanoseconds

        def new():
            return [c for c in chunks if c.points and stamp_ns(c) > since_ns]

        domain.until(lambda: len(new()) >= count, why="chunks are recorded")

    domain.until(begun, why="recording starts")

    record(8)
    assert domain.set("policy_node", "chunk_join", "rtc").successful
    assert domain.call("/policy_node/reset").success
    record(12)
    assert domain.set("policy_node", "num_inference_steps", 2).successful
    record(12)
    assert domain.call("/episode_recorder/stop").success

    loaded = load_policy(checkpoint)
    settings = loaded.recipe.policy
    sampling = to_horizon(Sampling.of(settings), settings.predicted_steps)
    replaying = Policy(build_engine(loaded, "eager", threads=1), sampling)
    replayed = replay_bag(tmp_path / "bags" / "episode_0000", replaying)
    found = against_live([replayed])
    assert found["same"] == found["compared"] >= 20, found
    assert found["engine"] == "eager f32"
    made = [replayed.live.provenance[replayed.times_ns[frame]] for frame in replayed.whole]
    assert {one.chunk_join for one in made} == {"replace", "rtc"}
    joined = [one for one in made if one.chunk_join == "rtc"]
    assert {one.num_inference_steps for one in joined} == {3, 2}
    assert sum(one.delay_frames > 0 for one in joined) >= 10
    assert any(said == "policy: running" for said in found["said"])
