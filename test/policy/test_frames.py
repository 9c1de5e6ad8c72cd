"""How the network sees poses: there and back, whatever the sign, wherever the base stands."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.following import Follow
from diffusion_policy_ros.policy.frames import Frames, FrameSettings
from diffusion_policy_ros.policy.hands import hands
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.rotations import (
    FROM_QUATERNION,
    TO_QUATERNION,
    angle_between,
    axis_angle_to_quaternion,
    compose,
    quaternion_to_matrix,
    quaternion_to_rotation_6d,
)

ROBOT = """
name: arm
rate_hz: 10
anchor: position
observations:
  position: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  turn: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
  block: {{topic: /block, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  block_turn: {{topic: /block, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
  offset: {{topic: /offset, type: geometry_msgs/msg/PoseStamped, field: pose.position}}
  fingers: {{topic: /fingers, type: sensor_msgs/msg/JointState, names: [left, right]}}
action:
  fields:
    - {{name: move, kind: {position}, state: position}}
    - {{name: turn, kind: {rotation}, state: turn}}
    - {{name: grip, kind: binary}}
  record: next_state
"""
POSITIONS, ROTATIONS = (
    ("delta_position", "position"),
    (
        "delta_axis_angle",
        "axis_angle",
        "quaternion",
        "rotation_6d",
    ),
)
SPACES = [
    ("absolute", "base"),
    *itertools.product(("delta", "relative"), ("base", "tool")),
]
STEPS, HORIZON = 2, 6


TWO_ARMS = """
name: two_arms
rate_hz: 10
anchor: left_position
observations:
  left_position: {field: pose.position, topic: /left, type: geometry_msgs/msg/PoseStamped}
  left_turn: {field: pose.orientation, topic: /left, type: geometry_msgs/msg/PoseStamped}
  right_turn: {tf: {parent: base, child: right}, field: rotation}
  right_position: {tf: {parent: base, child: right}, field: translation}
action:
  fields:
    - {name: left_move, kind: position, state: left_position}
    - {name: right_move, kind: position, state: right_position}
    - {name: left_turn, kind: quaternion, state: left_turn}
    - {name: right_turn, kind: quaternion, state: right_turn}
  record: next_state
"""


def test_each_arms_position_goes_with_its_own_rotation_whatever_the_fields_order():
    """Both positions may come first."""
    found = [hand[2:] for hand in hands(Contract.from_text(TWO_ARMS))]
    assert found == [("left_position", "left_turn"), ("right_position", "right_turn")]


def robot(position="position", rotation="quaternion"):
    """An arm that is told poses of these kinds."""
    text = ROBOT.format(position=position, rotation=rotation)
    return Contract.from_text(
        text.replace("kind: binary", "kind: binary, state: fingers, threshold: 0.1")
    )


def seen_as(actions, axes=None, orientation="rotation_6d"):
    """Settings in which the offset is known for one."""
    return FrameSettings(actions, axes, orientation, {"offset": "vector"})


def turns(random, *shape):
    """Random rotations (*shape, 4), of both signs."""
    value = random.normal(size=(*shape, 4))
    return value / np.linalg.norm(value, axis=-1, keepdims=True)


def drawn_window(seed, contract, batch=3):
    """Random poses and actions of a robot, far from each other."""
    random = np.random.default_rng(seed)
    window = {
        "position": random.normal(size=(batch, STEPS, 3)),
        "turn": turns(random, batch, STEPS),
        "block": random.normal(size=(batch, STEPS, 3)),
        "block_turn": turns(random, batch, STEPS),
        "offset": random.normal(size=(batch, STEPS, 3)),
        "fingers": random.normal(size=(batch, STEPS, 2)),
    }
    kind = contract.action.fields[1].kind.removeprefix("delta_")
    rotation = FROM_QUATERNION[kind](turns(random, batch, HORIZON))
    parts = [random.normal(size=(batch, HORIZON, 3)), rotation, np.ones((batch, HORIZON, 1))]
    return window | {"action": np.concatenate(parts, axis=-1)}


def rotations(contract, actions):
    """The quaternions of an action's rotations."""
    part = contract.action.fields[1]
    values = np.asarray(actions, np.float64)[..., contract.action.slices[part.name]]
    return TO_QUATERNION[part.kind.removeprefix("delta_")](values)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(POSITIONS),
    st.sampled_from(ROTATIONS),
    st.sampled_from(SPACES),
    st.integers(0, STEPS - 1),
)
def test_what_the_robot_is_told_comes_back(seed, position, rotation, space, first):
    """to_robot(to_network(x)) is x, in every space, from any observed frame on."""
    contract = robot(position, rotation)
    frames = Frames(contract, seen_as(*space), STEPS)
    window = drawn_window(seed, contract)
    actions = window.pop("action")[:, first:]
    back = frames.to_robot(frames.actions_to_network(actions, window, first), window, first)
    np.testing.assert_allclose(back[..., :3], actions[..., :3], atol=1e-5)
    np.testing.assert_array_equal(back[..., -1], actions[..., -1])
    assert angle_between(rotations(contract, back), rotations(contract, actions)).max() < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(POSITIONS),
    st.sampled_from(ROTATIONS),
    st.sampled_from([("recorded", None), *SPACES]),
)
def test_a_quaternion_and_its_negative_are_the_same_to_the_network(
    seed, position, rotation, space
):
    """Bit for bit: flipped in all frames, as by another driver, or in some, as in mid-bag."""
    contract = robot(position, rotation)
    frames, window = Frames(contract, seen_as(*space), STEPS), drawn_window(seed, contract)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (3, STEPS, 1))
    flipped = window | {"turn": -window["turn"], "block_turn": signs * window["block_turn"]}
    ours, theirs = frames.to_network(window), frames.to_network(flipped)
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    chunk = ours["action"]
    np.testing.assert_array_equal(frames.to_robot(chunk, window), frames.to_robot(chunk, flipped))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_relative_to_the_tool_nothing_tells_where_the_base_stands(seed):
    """Told from a turned and moved base, window and actions look the same, and lead there."""
    contract = robot("position", "quaternion")
    frames = Frames(contract, seen_as("relative"), STEPS)
    window = drawn_window(seed, contract)
    moved = moved_base(seed, window)
    ours, theirs = frames.to_network(window), frames.to_network(moved)
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], atol=1e-5, err_msg=key)
    back = frames.to_robot(ours["action"], moved)
    np.testing.assert_allclose(back[..., :3], moved["action"][..., :3], atol=1e-5)
    told = rotations(contract, back), rotations(contract, moved["action"])
    assert angle_between(*told).max() < 1e-5


def moved_base(seed, window):
    """The same, told from another base."""
    random = np.random.default_rng(seed + 1)
    turn, shift = turns(random), random.normal(size=3)
    matrix, out = quaternion_to_matrix(turn), {}
    for key, value in window.items():
        place = value[..., :3] @ matrix.T if value.shape[-1] > 2 else value
        if key in ("position", "block"):
            out[key] = place + shift
        elif key == "offset":
            out[key] = place
        elif key == "action":
            turned = compose(turn, value[..., 3:7])
            out[key] = np.concatenate([place + shift, turned, value[..., 7:]], axis=-1)
        else:
            out[key] = compose(turn, value) if key.endswith("turn") else value
    return out


def test_values_worked_out_by_hand():
    """A tool turned by 90 degrees about z, at (1, 0, 0), that is told to go to (1, 2, 0)."""
    contract, quarter = robot(), axis_angle_to_quaternion([0, 0, np.pi / 2])
    window = {key: value[:1] for key, value in drawn_window(0, contract).items()}
    window |= {
        "position": np.array([[[0.5, 0, 0], [1.0, 0, 0]]]),
        "turn": np.tile(quarter, (1, 2, 1)),
    }
    window |= {"offset": np.tile([0.0, 1.0, 0.0], (1, 2, 1))}
    targets = np.tile([1.0, 2.0, 0.0, *quarter, 1.0], (1, 3, 1))
    same = quaternion_to_rotation_6d([0, 0, 0, 1])

    def told(actions, axes=None):
        frames = Frames(contract, seen_as(actions, axes), STEPS)
        return frames.to_network(window | {"action": targets})

    relative = told("relative")
    assert relative["action"][0, 2] == pytest.approx([2, 0, 0, *same, 1])
    assert relative["position"][0] == pytest.approx(np.array([[0, 0.5, 0], [0, 0, 0]]))
    assert relative["offset"][0, 1] == pytest.approx([1, 0, 0])
    assert told("relative", "base")["action"][0, 2] == pytest.approx([0, 2, 0, *same, 1])
    turned = quaternion_to_rotation_6d(quarter)
    assert told("absolute")["action"][0, 2] == pytest.approx([1, 2, 0, *turned, 1])
    # Each observed frame's action starts where the tool was then, a later one at its predecessor.
    ways = [[0.5, 2, 0, 0, 0, 0, 1], [0, 2, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]]
    assert told("delta")["action"][0] == pytest.approx(np.array(ways), abs=1e-6)
    assert told("delta", "tool")["action"][0, 1] == pytest.approx([2, 0, 0, 0, 0, 0, 1], abs=1e-6)


def test_deltas_are_told_as_they_were_recorded():
    """A contract of deltas in base axes and a network of them are the same numbers, untouched."""
    contract = robot("delta_position", "delta_axis_angle")
    frames, window = Frames(contract, seen_as("delta"), STEPS), drawn_window(0, contract)
    assert frames.to_network(window)["action"] is window["action"]
    assert not frames.changes_actions


def test_a_tool_pointing_down_is_told_without_a_jump():
    """Half a degree of noise about a turn by pi: axis-angle jumps by 6.2 rad, 6-D by nothing."""
    contract = robot("position", "axis_angle")
    random = np.random.default_rng(0)
    noise = axis_angle_to_quaternion(random.normal(scale=np.radians(0.5), size=(3, HORIZON, 3)))
    down = FROM_QUATERNION["axis_angle"](compose(noise, [1.0, 0, 0, 0]))
    assert np.abs(np.diff(down, axis=1)).max() > 6.2
    window = drawn_window(0, contract)
    window["action"][..., 3:6] = down
    frames = Frames(contract, seen_as("absolute"), STEPS)
    told = frames.to_network(window)["action"]
    assert np.abs(np.diff(told[..., 3:9], axis=1)).max() < 0.1
    back = rotations(contract, frames.to_robot(told, window))
    assert angle_between(back, rotations(contract, window["action"])).max() < 1e-5


def test_nothing_asked_for_is_nothing_changed():
    """The default leaves windows, chunks and sizes as they are: what was trained before runs."""
    contract = robot()
    frames, window = Frames(contract, FrameSettings(), STEPS), drawn_window(0, contract)
    seen = frames.to_network(window)
    assert all(seen[key] is window[key] for key in window)
    assert (frames.seen, frames.changes_any) == (contract, False)


def test_what_is_told_in_another_frame_is_not_told_from_the_tool():
    """The contract says so by `frame_id`; it still loses its sign."""
    text = robot().text
    elsewhere = text.replace("topic: /block,", "topic: /block, frame_id: camera,")
    window, told = drawn_window(0, robot()), []
    for contract in map(Contract.from_text, (text, elsewhere)):
        told.append(Frames(contract, seen_as("relative"), STEPS).to_network(window))
    assert np.abs(told[0]["block"] - window["block"]).max() > 0.1
    assert told[1]["block"] is window["block"]
    turned = quaternion_to_rotation_6d(window["block_turn"])
    np.testing.assert_allclose(told[1]["block_turn"], turned, atol=1e-6)


def test_two_hands_are_told_each_from_itself():
    """Of two arms each starts at its own pose; what belongs to none is told from the first."""
    text = """
name: two
rate_hz: 10
anchor: lp
observations:
  lp: {topic: /l, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  lq: {topic: /l, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
  rp: {topic: /r, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  rq: {topic: /r, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
  block: {topic: /b, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields:
    - {name: lt, kind: position, state: lp}
    - {name: lr, kind: quaternion, state: lq}
    - {name: rt, kind: position, state: rp}
    - {name: rr, kind: rotation_6d, state: rq}
  record: next_state
"""
    contract, random = Contract.from_text(text), np.random.default_rng(0)
    window = {key: random.normal(size=(1, STEPS, 3)) for key in ("lp", "rp", "block")}
    window |= {key: turns(random, 1, STEPS) for key in ("lq", "rq")}
    frames = Frames(contract, FrameSettings("relative", "base"), STEPS)
    there = [window["lp"][0, 1], window["lq"][0, 1], window["rp"][0, 1]]
    right = quaternion_to_rotation_6d(window["rq"][0, 1])
    window["action"] = np.concatenate([*there, right])[None, None]
    seen, still = frames.to_network(window), quaternion_to_rotation_6d([0, 0, 0, 1])
    here = [0, 0, 0, *still] * 2
    assert seen["action"][0, 0] == pytest.approx(here, abs=1e-6)
    assert seen["block"][0, 0] == pytest.approx(window["block"][0, 0] - window["lp"][0, 1])
    assert frames.seen.action_dim == 18


@pytest.mark.parametrize("rotation", ["quaternion", "rotation_6d"])
def test_only_positions_and_only_rotations(rotation):
    """Half a pose is half a pose; in tool axes the orientation is that of the same message."""
    text = ROBOT.format(position="position", rotation=rotation)
    lines = [line for line in text.splitlines() if "binary" not in line]
    for name, size in (("move", 3), ("turn", 6)):
        kept = [line for line in lines if "kind:" not in line or f"name: {name}" in line]
        contract = Contract.from_text("\n".join(kept))
        window = drawn_window(0, robot())
        actions = window.pop("action")[..., : contract.action_dim]
        if name == "turn":
            actions = FROM_QUATERNION[rotation](turns(np.random.default_rng(1), 3, HORIZON))
        for space in SPACES:
            frames = Frames(contract, seen_as(*space), STEPS)
            told = frames.actions_to_network(actions, window)
            assert told.shape[-1] == (size if space[0] != "delta" else 3)
            back = frames.to_robot(told, window)
            if name == "turn":
                back, wanted = (TO_QUATERNION[rotation](value) for value in (back, actions))
                assert angle_between(back, wanted).max() < 1e-5
            else:
                np.testing.assert_allclose(back, actions, atol=1e-5)


@pytest.mark.parametrize(
    ("geometry", "what"),
    [
        ({"blok": "point"}, "did you mean 'block'"),
        ({"fingers": "point"}, "has 2 values, point has 3"),
    ],
)
def test_geometry_that_does_not_fit_the_contract_is_refused(geometry, what):
    """By its key, with what is near."""
    with pytest.raises(UserError, match=what):
        Frames(robot(), FrameSettings(geometry=geometry), STEPS)


def test_a_pose_is_known_whole_if_half_of_it_is_named():
    """Of a field without a state, the other half of the same message measures it."""
    record = "record: {topic: /c, type: std_msgs/msg/Float64MultiArray, shape: [8]}"
    text = ROBOT.format(position="position", rotation="quaternion")
    text = text.replace("record: next_state", record)
    whole = Frames(Contract.from_text(text), seen_as("relative"), STEPS)
    window = drawn_window(0, robot())
    for state in (", state: turn", ", state: position"):
        half = Frames(Contract.from_text(text.replace(state, "")), seen_as("relative"), STEPS)
        ours, theirs = half.to_network(window)["action"], whole.to_network(window)["action"]
        np.testing.assert_array_equal(ours, theirs)


def test_a_pose_that_nobody_measures_has_no_way_from_it():
    """Without any state only what needs none is possible, and the cure is named."""
    text = ROBOT.format(position="position", rotation="quaternion")
    for state in (", state: turn", ", state: position"):
        text = text.replace(state, "")
    record = "record: {topic: /c, type: std_msgs/msg/Float64MultiArray, shape: [8]}"
    contract = Contract.from_text(text.replace("record: next_state", record))
    assert Frames(contract, FrameSettings("absolute"), STEPS).seen.action_dim == 10
    for actions in ("delta", "relative"):
        with pytest.raises(UserError, match="name that observation as state"):
            Frames(contract, FrameSettings(actions), STEPS)


def test_a_quaternion_without_length_is_refused_by_name():
    """A driver that has not begun says 0 0 0 0: nothing is guessed of that."""
    contract = robot()
    frames, window = Frames(contract, seen_as("relative"), STEPS), drawn_window(0, contract)
    window["block_turn"] = np.zeros((3, STEPS, 4))
    with pytest.raises(UserError, match="no rotation") as caught:
        frames.to_network(window)
    assert caught.value.where == "block_turn"


def test_what_is_no_rotation_leaves_as_nan():
    """Two parallel vectors are no 6-D rotation: the chunk is not finite, and so not played."""
    contract = robot()
    frames, window = Frames(contract, seen_as("relative"), STEPS), drawn_window(0, contract)
    chunk = frames.to_network(window)["action"]
    chunk[1, 2, 3:9] = 1.0
    back = frames.to_robot(chunk, window)
    assert np.isfinite(back[[0, 2]]).all() and np.isnan(back[1]).all()


# --- The policy ----------------------------------------------------------------------------------

RECIPE = """
policy:
  n_obs_steps: 2
  horizon: 8
  n_action_steps: 4
  num_train_timesteps: 20
  num_inference_steps: 3
  prediction_type: sample
  actions: {actions}
  orientation: rotation_6d
  geometry: {{offset: vector}}
  denoiser: {{down_dims: [16, 32], kernel_size: 3, n_groups: 4, diffusion_step_embed_dim: 16}}
"""


def policy_of(contract, actions="relative", **changes):
    """A small policy with statistics of random windows."""
    recipe = Recipe.from_text(RECIPE.format(actions=actions), overrides=changes)
    policy = DiffusionPolicy(recipe, contract).eval()
    seen = policy.frames.to_network(drawn_window(0, contract, batch=50))
    policy.set_statistics(
        {key: {"min": value.min((0, 1)), "max": value.max((0, 1))} for key, value in seen.items()}
    )
    return policy


def observed(seed=1, batch=2):
    """A window of the robot, float32."""
    window = drawn_window(seed, robot(), batch)
    del window["action"]
    return {key: value.astype(np.float32) for key, value in window.items()}


@pytest.mark.parametrize("actions", ["recorded", "absolute", "delta", "relative"])
def test_chunks_do_not_depend_on_the_sign_of_a_quaternion(actions):
    """Bit for bit, though the robot says -q for q; and they are the contract's own actions."""
    contract = robot()
    policy, window = policy_of(contract, actions), observed()
    flipped = window | {key: -window[key] for key in ("turn", "block_turn")}
    noise = torch.randn(2, 8, policy.sizes.action_dim, generator=torch.Generator().manual_seed(0))
    ours, theirs = (policy.sample(seen, noise=noise) for seen in (window, flipped))
    assert torch.equal(ours, theirs)
    assert ours.shape == (2, 8, contract.action_dim) and torch.isfinite(ours).all()


def test_raw_quaternions_have_a_sign_and_that_is_said():
    """What the numbers say as they are depends on the sign: a policy that sees them so warns."""
    policy = policy_of(
        robot(), "relative", **{"policy.orientation": "raw", "policy.actions": "recorded"}
    )
    assert any("orientation: rotation_6d" in line for line in policy.warnings())
    assert not any("rotation_6d" in line for line in policy_of(robot()).warnings())


def test_a_chunk_follows_another_in_the_robots_words():
    """What is fixed comes out as it was told, though the network sees it otherwise."""
    contract = robot()
    policy, window = policy_of(contract, **{"policy.clip_sample": "false"}), observed(batch=1)
    noise = torch.randn(1, 8, policy.sizes.action_dim, generator=torch.Generator().manual_seed(0))
    before = policy.sample(window, noise=noise)
    fixed = torch.cat([before[:, :5] + 0.0, torch.zeros(1, 3, contract.action_dim)], dim=1)
    weights = torch.tensor([1.0] * 5 + [0.0] * 3)
    chunk = policy.sample(window, noise=-noise, follow=Follow(fixed, weights, "inpaint"))
    assert torch.isfinite(chunk).all()
    np.testing.assert_allclose(chunk[:, :5], before[:, :5], atol=1e-4)
    free = Follow(torch.zeros_like(before), torch.zeros(8), "inpaint")
    assert torch.equal(policy.sample(window, noise=noise, follow=free), before)


def test_a_recipe_and_its_checkpoint_know_nothing_of_frames_where_they_are_not_named():
    """Recipes from before have no such keys; they mean: as recorded, raw."""
    settings = Recipe.from_text("name: old\n").policy
    assert (settings.actions, settings.orientation, settings.geometry) == ("recorded", "raw", {})
    again = Recipe.from_text(Recipe.from_text(RECIPE.format(actions="delta")).to_text()).policy
    assert (again.actions, again.axes, again.geometry) == ("delta", "base", {"offset": "vector"})
