"""The scripted demonstrator: it succeeds, varies, and keeps to the limits."""

from importlib.util import find_spec

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

if find_spec("mujoco") is None:  # not importorskip: the package chooses OpenGL before it imports
    pytest.skip("mujoco is missing: pip install -e '.[sim]'", allow_module_level=True)

from diffusion_policy_ros.sim.arm import SimArm
from diffusion_policy_ros.sim.expert import MAX_ROTATION, MAX_TRANSLATION, Expert
from diffusion_policy_ros.sim.simulator import FIRST_EVALUATION_SEED


@pytest.fixture(scope="module")
def arm():
    """Without cameras."""
    return SimArm(render=False)


def demonstrate(arm: SimArm, seed: int, noise: float) -> tuple[bool, np.ndarray, np.ndarray]:
    """Run one episode; success, clean actions (n, 7), executed actions (n, 7)."""
    obs, expert = arm.reset(seed), Expert(seed, noise=noise)
    position, quaternion = arm.measured
    clean, executed = [], []
    while not arm.done:
        both = expert.act(obs, position, quaternion)
        clean.append(both[0])
        executed.append(both[1])
        measured = arm.measured.position
        position = np.clip(position + both[1][:3], measured - 0.05, measured + 0.05)
        turn = Rotation.from_rotvec(both[1][3:6]) * Rotation.from_quat(quaternion)
        quaternion = turn.as_quat()
        obs = arm.step(position, quaternion, both[1][6])
    return arm.success, np.array(clean), np.array(executed)


@pytest.mark.parametrize("noise", [0.0, 0.12])
@pytest.mark.parametrize("first", [0, FIRST_EVALUATION_SEED])
def test_the_expert_lifts_the_block(arm, noise, first):
    """Every one of 20 seeds, for training and for evaluation, with and without noise."""
    results = [demonstrate(arm, seed, noise) for seed in range(first, first + 20)]
    assert all(success for success, _, _ in results)
    assert 15 < np.mean([len(clean) for _, clean, _ in results]) < 60


def test_actions_keep_to_the_limits(arm):
    """Both of a pair, at a noise that would break them: 0.025 m an axis, 0.15 rad."""
    _, clean, executed = demonstrate(arm, 4, noise=1.0)
    for actions in (clean, executed):
        assert actions.shape[1] == 7
        assert np.abs(actions[:, :3]).max() <= MAX_TRANSLATION + 1e-12
        assert np.linalg.norm(actions[:, 3:6], axis=1).max() <= MAX_ROTATION + 1e-12
        assert set(np.unique(actions[:, 6])) <= {-1.0, 1.0}


def test_what_is_recorded_is_free_of_the_noise(arm):
    """Without noise both are equal; with it the executed motion strays, the recorded does not."""
    _, clean, executed = demonstrate(arm, 5, noise=0.0)
    assert np.array_equal(clean, executed)
    _, clean, executed = demonstrate(arm, 5, noise=0.12)
    assert not np.array_equal(clean[:, :6], executed[:, :6])
    assert set(np.unique(clean[:, 6])) == {-1.0, 1.0}


def test_mishaps_are_mended_and_only_their_mending_is_recorded(arm):
    """Now and then the hand slips; the label goes on saying what should have been done."""
    slips = 0
    for seed in range(10):
        result, clean, executed = demonstrate(arm, seed, noise=0.12)
        assert result
        slips += int((clean[:, 6] != executed[:, 6]).sum())
    assert slips > 0


def test_a_seed_gives_the_same_demonstration(arm):
    """Bit for bit, so that a bag can be made again."""
    first, second = demonstrate(arm, 6, 0.12), demonstrate(arm, 6, 0.12)
    assert first[2].tobytes() == second[2].tobytes()


def test_approaches_vary(arm):
    """From one start, different experts take different ways: over 2 cm apart in the middle."""
    ways = []
    for seed in range(8):
        obs, expert = arm.reset(1), Expert(seed, noise=0.0)
        position, quaternion = arm.measured
        for _ in range(8):
            action = expert.act(obs, position, quaternion)[1]
            position = position + action[:3]
            obs = arm.step(position, quaternion, -1)
        ways.append(obs["robot0_eef_pos"])
    assert np.ptp(np.array(ways), axis=0).max() > 0.02


@pytest.mark.parametrize("degrees", [-170, -100, -46, -44, 0, 30, 44, 46, 91, 179])
def test_the_tool_turns_to_the_face_nearest_to_its_rest(arm, degrees):
    """Never more than an eighth of a turn, whatever the block's yaw."""
    obs, expert = arm.reset(0), Expert(0, noise=0.0)
    half = np.deg2rad(degrees) / 2
    obs["object_quat"] = np.array([0, 0, np.sin(half), np.cos(half)], np.float32)
    quaternion = np.array([0.0, 0.0, 0.0, 1.0])
    for _ in range(60):
        spin = expert.act(obs, arm.measured.position, quaternion)[0][3:6]
        quaternion = (Rotation.from_rotvec(spin) * Rotation.from_quat(quaternion)).as_quat()
    yaw = Rotation.from_quat(quaternion).as_euler("zyx", degrees=True)[0]
    assert abs(yaw) <= 45.1
    assert abs((yaw - degrees + 45) % 90 - 45) < 0.1
