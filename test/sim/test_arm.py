"""The simulated arm: its task, its time, its observations."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

if find_spec("mujoco") is None:  # not importorskip: the package chooses OpenGL before it imports
    pytest.skip("mujoco is missing: pip install -e '.[sim]'", allow_module_level=True)

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim import opengl
from diffusion_policy_ros.sim.arm import MAX_STEPS, SimArm
from diffusion_policy_ros.sim.simulator import FIRST_EVALUATION_SEED

IDENTITY = np.array([0.0, 0.0, 0.0, 1.0])
can_render = pytest.mark.skipif(
    opengl.BACKEND == "disable", reason=f"no OpenGL on this machine: {opengl.CURE}"
)


@pytest.fixture(scope="module")
def arm():
    """Without cameras."""
    return SimArm(render=False)


@pytest.fixture(scope="module")
def seeing_arm():
    """With cameras."""
    with SimArm() as arm:
        yield arm


def wander(arm: SimArm, seed: int, steps: int) -> list[dict[str, np.ndarray]]:
    """Reset to a seed and push the arm about, the same way for the same seed."""
    rng = np.random.default_rng(seed + 1)
    result = [arm.reset(seed)]
    for _ in range(steps):
        goal = result[-1]["object_pos"] + rng.normal(0, 0.02, 3)
        result.append(arm.step(goal, IDENTITY + rng.normal(0, 0.05, 4), rng.uniform(-1, 1)))
    return result


def same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> bool:
    """Whether two runs agree in every bit."""
    return all(
        a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)
        for a, b in zip(first, second, strict=True)
    )


@can_render
def test_a_seed_gives_the_same_episode_bit_for_bit(seeing_arm):
    """Reset forgets everything: another episode between changes no bit, nor does another arm."""
    first = wander(seeing_arm, 7, 12)
    wander(seeing_arm, 8, 5)
    assert same(first, wander(seeing_arm, 7, 12))
    with SimArm() as other:
        assert same(first, wander(other, 7, 12))


@can_render
def test_leaving_out_the_images_changes_nothing_else(seeing_arm, arm):
    """The fast arm without cameras lives through the same physics."""
    first, second = wander(seeing_arm, 3, 8), wander(arm, 3, 8)
    for a, b in zip(first, second, strict=True):
        assert set(a) - set(b) == {"agentview_image", "robot0_eye_in_hand_image"}
        assert all(np.array_equal(a[k], b[k]) for k in b)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2 * FIRST_EVALUATION_SEED))
def test_every_episode_starts_inside_the_task(arm, seed):
    """Block within 0.10 m; gripper x in [-0.12, 0], y within 0.10, z within 0.05 of 0.2."""
    obs = arm.reset(seed)
    low, high = np.array([-0.12, -0.10, 0.15]), np.array([0.0, 0.10, 0.25])
    assert np.all(np.abs(obs["object_pos"][:2]) <= 0.1 + 1e-6)
    assert obs["object_pos"][2] == pytest.approx(0.02, abs=1e-6)
    assert np.all(obs["robot0_eef_pos"] >= low - 1e-6)
    assert np.all(obs["robot0_eef_pos"] <= high + 1e-6)
    assert np.allclose(obs["robot0_eef_quat"], IDENTITY)
    assert np.allclose(obs["robot0_gripper_qpos"], 0.04)
    assert obs["object_quat"][3] >= 0
    assert np.allclose(
        obs["gripper_to_object_pos"], obs["object_pos"] - obs["robot0_eef_pos"], atol=1e-7
    )


def test_starts_fill_their_ranges(arm):
    """Over many seeds every coordinate is uniform: near both ends, and centred between them."""
    starts = [arm.reset(seed) for seed in range(600)]
    yaw = [2 * np.arctan2(o["object_quat"][2], o["object_quat"][3]) for o in starts]
    drawn = {
        "x": ([o["object_pos"][0] for o in starts], -0.1, 0.1),
        "y": ([o["object_pos"][1] for o in starts], -0.1, 0.1),
        "yaw": (yaw, -np.pi, np.pi),
        "gripper x": ([o["robot0_eef_pos"][0] for o in starts], -0.12, 0.0),
        "gripper y": ([o["robot0_eef_pos"][1] for o in starts], -0.1, 0.1),
        "gripper z": ([o["robot0_eef_pos"][2] for o in starts], 0.15, 0.25),
    }
    for name, (values, low, high) in drawn.items():
        share = (np.array(values) - low) / (high - low)
        assert share.min() < 0.02 and share.max() > 0.98, name
        assert abs(share.mean() - 0.5) < 0.06, name
        assert abs(share.std() - 12**-0.5) < 0.03, name


def test_observations_have_the_shapes_and_types_that_are_promised(arm):
    """float32 vectors of the documented sizes, no images when none are asked for."""
    sizes = {k: (v.shape, v.dtype.name) for k, v in arm.reset(0).items()}
    assert sizes == {
        "robot0_eef_pos": ((3,), "float32"),
        "robot0_eef_quat": ((4,), "float32"),
        "robot0_gripper_qpos": ((2,), "float32"),
        "object_pos": ((3,), "float32"),
        "object_quat": ((4,), "float32"),
        "gripper_to_object_pos": ((3,), "float32"),
    }


def test_time_is_a_whole_number_of_periods(arm):
    """20 Hz exactly, without a rounding error that grows; the physics keeps the same time."""
    arm.reset(0)
    for step in range(1, 101):
        arm.step(arm.measured.position, IDENTITY, -1)
        assert arm.time_ns == step * 50_000_000
    assert arm.steps == 100
    assert arm._data.time == pytest.approx(5.0)


def hold_block(arm: SimArm, height: float) -> None:
    """Put the block at a height by hand and let one period pass."""
    arm._data.joint("block").qpos[:3] = [0.3, 0.3, height + 0.01]
    arm._data.joint("block").qvel[:] = 0
    arm.step(arm.measured.position, IDENTITY, -1)


def test_success_needs_five_steps_on_end_above_ten_centimetres(arm):
    """Four steps up, one down, four up are no success; a fifth in a row is; and it stays."""
    arm.reset(0)
    for height, lifted in [(0.15, 4), (0.05, 1), (0.15, 4)]:
        for _ in range(lifted):
            hold_block(arm, height)
    assert not arm.success and not arm.done
    hold_block(arm, 0.15)
    assert arm.success and arm.done
    hold_block(arm, 0.05)
    assert arm.success
    arm.reset(0)
    assert not arm.success and arm.steps == 0


def test_a_lift_after_two_hundred_steps_comes_too_late(arm):
    """The episode is done after 200 steps, whatever happens later."""
    arm.reset(0)
    for _ in range(MAX_STEPS - 4):
        arm.step(arm.measured.position, IDENTITY, -1)
    for _ in range(6):
        hold_block(arm, 0.15)
    assert arm.done and not arm.success


def test_the_hand_follows_the_commanded_pose(arm):
    """Any pose near by is reached to a millimetre and half a degree in half a second."""
    start = arm.reset(5)["robot0_eef_pos"]
    goal = start + [0.04, -0.05, 0.03]
    turn = np.array([0.1, -0.15, 0.25, 0.0])
    turn[3] = np.sqrt(1 - turn @ turn)
    for _ in range(10):
        arm.step(goal, -turn, -1)  # the other sign is the same turn
    assert np.allclose(arm.measured.position, goal, atol=1e-3)
    assert np.allclose(arm.measured.quaternion, turn, atol=4e-3)


def test_the_fingers_follow_the_gripper_command(arm):
    """-1 opens to 40 mm a side, +1 closes, values between are openings between."""
    arm.reset(0)
    for command, opening in [(1.0, 0.0), (0.0, 0.02), (-1.0, 0.04), (5.0, 0.0)]:
        for _ in range(20):
            obs = arm.step(arm.measured.position, IDENTITY, command)
        assert np.allclose(obs["robot0_gripper_qpos"], opening, atol=1e-3)


def test_a_held_block_does_not_slip(arm):
    """Five seconds in the air: less than a millimetre against the fingers."""
    obs = arm.reset(0)
    yaw = 2 * np.arctan2(obs["object_quat"][2], obs["object_quat"][3]) / 2
    turn = np.array([0, 0, np.sin(yaw), np.cos(yaw)])
    low = np.array([*obs["object_pos"][:2], 0.02])
    for goal, gripper, steps in [(low + [0, 0, 0.1], -1, 20), (low, -1, 20), (low, 1, 10)]:
        for _ in range(steps):
            obs = arm.step(goal, turn, gripper)
    for _ in range(20):
        obs = arm.step(low + [0, 0, 0.15], turn, 1)
    held = obs["gripper_to_object_pos"]
    for _ in range(100):
        obs = arm.step(low + [0, 0, 0.15], turn, 1)
    assert arm.success
    assert np.linalg.norm(obs["gripper_to_object_pos"] - held) < 1e-3


def test_commands_that_are_no_pose_are_refused(arm):
    """A NaN never reaches the physics, which would carry it to every later step."""
    arm.reset(0)
    for position, quaternion in [([np.nan, 0, 0.2], IDENTITY), ([0, 0, 0.2], np.zeros(4))]:
        with pytest.raises(ValueError, match="not a pose"):
            arm.step(np.array(position), quaternion, 0)
    assert np.all(np.isfinite(arm.observe()["robot0_eef_pos"]))


def test_a_negative_seed_is_refused(arm):
    """With what was given and what is valid."""
    with pytest.raises(UserError, match=r"seed -1 is negative; use 0 or more"):
        arm.reset(-1)


def red_centre(picture: np.ndarray) -> np.ndarray:
    """Column and row of the middle of the red pixels."""
    rgb = picture.astype(int)
    rows, columns = np.nonzero(rgb[..., 0] > 2 * rgb[..., 1:].max(-1))
    assert len(rows) > 10
    return np.array([(columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2])


@can_render
@pytest.mark.parametrize("camera", ["agentview", "overview", "robot0_eye_in_hand"])
@pytest.mark.parametrize("shape", [(84, 84), (240, 320)])
def test_project_finds_the_block_in_the_picture(seeing_arm, camera, shape):
    """The block's projected corners frame its red pixels to two pixels, in every picture."""
    height, width = shape
    obs = seeing_arm.reset(11)
    above = obs["object_pos"] + [0, 0, 0.12]
    for _ in range(30):  # so that the camera in the hand sees it, and no finger hides it
        obs = seeing_arm.step(above, IDENTITY, -1)
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.02
    matrix = seeing_arm._data.body("block").xmat.reshape(3, 3)
    pixels = seeing_arm.project(obs["object_pos"] + corners @ matrix.T, camera, height, width)
    middle = (pixels.min(0) + pixels.max(0)) / 2
    picture = seeing_arm.render(camera, height, width)
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    assert np.abs(red_centre(picture) - middle).max() < 2.0


def test_points_behind_the_camera_have_no_pixel(arm):
    """NaN, not a mirrored place in the picture."""
    pixels = arm.project(np.array([[2.0, 0, 0.4], [0, 0, 0]]), "agentview", 84, 84)
    assert np.isnan(pixels[0]).all() and np.isfinite(pixels[1]).all()


def test_the_whole_task_is_in_the_agentview(arm):
    """Block and finger tips stay inside the smallest crop of 76 pixels, wherever it is taken."""
    arm.reset(0)
    points = [[x, y, z] for x in (-0.13, 0.13) for y in (-0.13, 0.13) for z in (0.0, 0.25)]
    pixels = arm.project(np.array(points), "agentview", 84, 84)
    assert pixels.min() >= 7 and pixels.max() <= 76


@can_render
def test_an_unknown_camera_is_named_with_the_near_one(seeing_arm):
    """A user error, not a lookup that fails."""
    with pytest.raises(UserError, match="no camera 'agentviev'; did you mean 'agentview'"):
        seeing_arm.render("agentviev", 84, 84)


@can_render
def test_shadows_are_only_in_the_pictures_for_people(seeing_arm):
    """A picture with shadows is another one, and observations after it are what they were."""
    before = seeing_arm.reset(2)
    plain = seeing_arm.render("overview", 160, 160)
    assert not np.array_equal(plain, seeing_arm.render("overview", 160, 160, shadows=True))
    assert same([before], [seeing_arm.observe()])


PROBE = """
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim import opengl
from diffusion_policy_ros.sim.arm import SimArm
print(opengl.BACKEND, SimArm(render=False).reset(0)["object_pos"].shape)
try:
    print(SimArm().reset(0)["agentview_image"].mean() > 50)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("backend", ["disable", "osmesa", "egl"])
def test_each_backend_works_or_says_what_to_install(backend):
    """Physics always works; cameras work or end in one line that names the Debian packages."""
    env = os.environ | {"MUJOCO_GL": backend}
    if not {"osmesa": opengl.osmesa_works, "egl": opengl.egl_works}.get(backend, lambda: True)():
        pytest.skip(f"{backend} is not installed here")
    env.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run(
        check=False, args=[sys.executable, "-c", PROBE], env=env, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert lines[:1] == [f"{backend} (3,)"], done.stderr
    if backend == "disable":
        assert "libegl1" in lines[1] and "libosmesa6" in lines[1]
    else:
        assert lines[1:] == ["True"]


def test_the_backend_is_egl_else_osmesa_else_none(monkeypatch):
    """And what the user asked for is respected."""
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert opengl.choose_backend() == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "mujoco")
    for egl, osmesa, expected in [
        (True, True, "egl"),
        (False, True, "osmesa"),
        (False, False, "disable"),
    ]:
        monkeypatch.setattr(opengl, "egl_works", lambda egl=egl: egl)
        monkeypatch.setattr(opengl, "osmesa_works", lambda osmesa=osmesa: osmesa)
        assert opengl.choose_backend() == expected
