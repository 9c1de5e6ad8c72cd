"""The verb: from a folder to a checkpoint that runs."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from expressed import contract_of
from test_lerobot import imported

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.foreign import Vector, build, match, table
from diffusion_policy_ros.interop.importing import draft_contract, read_foreign
from diffusion_policy_ros.policy.checkpoint import load_policy, sha256

NAME = "policy_quantiles"
KEYS = ("state", "environment_state")


@pytest.fixture
def contract(foreign_folder, tmp_path):
    """A file with a contract whose sizes are the checkpoint's."""
    path = tmp_path / "robot.yaml"
    path.write_text(contract_of(read_foreign(foreign_folder(NAME))).text)
    return path


def test_it_writes_a_checkpoint_whose_card_names_the_origin(
    foreign_folder, contract, tmp_path, capsys
):
    """Origin, hash of each file, licence, and what is what; and it loads as any of ours."""
    folder, out = foreign_folder(NAME), tmp_path / "run"
    assert main(["import", "checkpoint", str(folder), "--contract", str(contract), *_to(out)]) == 0
    said = capsys.readouterr().out
    assert "observation.state (4)" in said and "= state (4)" in said
    card = (out / "card.md").read_text()
    assert "Imported from: LeRobot, 0.4 or later" in card
    assert f"`model.safetensors`, SHA-256 `{sha256(folder / 'model.safetensors')}`" in card
    assert "Licence: no licence file beside its files: ask who trained it" in card
    policy, _, arrays = imported(folder)
    ours = load_policy(out)
    seen = {k: arrays[f"input/observation.{k}"][:, :1] for k in KEYS}
    noise = torch.from_numpy(arrays["sample/start"])
    assert torch.equal(ours.sample(seen, noise=noise), policy.sample(seen, noise=noise))


def _to(out):
    return ["--out", str(out)]


def test_a_licence_beside_the_files_is_named(foreign_folder, contract, tmp_path):
    """It belongs to the weights wherever they go."""
    folder = foreign_folder(NAME)
    (folder / "LICENSE.txt").write_text("MIT")
    try:
        main(
            [
                "import",
                "checkpoint",
                str(folder),
                "--contract",
                str(contract),
                *_to(tmp_path / "a"),
            ]
        )
    finally:
        (folder / "LICENSE.txt").unlink()
    assert "Licence: `LICENSE.txt` beside its files" in (tmp_path / "a" / "card.md").read_text()


def test_without_a_contract_it_drafts_one_that_fits(foreign_folder, tmp_path, capsys):
    """Sizes are the checkpoint's, what it cannot know is marked; the draft can be read."""
    folder = foreign_folder("policy_two_cameras")
    assert main(["import", "checkpoint", str(folder), *_to(tmp_path / "a")]) == 2
    out, err = capsys.readouterr()
    assert "no contract was given" in err and out.count("GAP") >= 6
    foreign = read_foreign(folder)
    drafted = Contract.from_text(out)
    assert drafted.text.rstrip() == draft_contract(foreign, folder)
    assert match(foreign, drafted) == {
        "observation.state": ("state",),
        "observation.images.front": ("front",),
        "observation.images.wrist_cam": ("wrist_cam",),
    }


CAMERA = "{{topic: /{0}, type: sensor_msgs/msg/Image, shape: {1}}}"
COMMAND = "std_msgs/msg/Float64MultiArray"
JOINTS = "{{topic: /{0}, type: sensor_msgs/msg/JointState, shape: [{1}]}}"


def robot(action=7, **observed):
    """A contract of these sizes; a list is a picture's."""
    lines = [
        f"  {key}: {(CAMERA if isinstance(size, list) else JOINTS).format(key, size)}"
        for key, size in observed.items()
    ]
    return Contract.from_text(
        "\n".join(
            [
                "name: robot",
                "rate_hz: 10",
                f"anchor: {next(iter(observed))}",
                "observations:",
                *lines,
                "action:",
                f"  fields: [{{name: joints, kind: joint_position, size: {action}}}]",
                f"  record: {{topic: /c, type: {COMMAND}, shape: [{action}]}}",
            ]
        )
    )


PICTURE = [64, 64, 3]


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (robot(arm=8, front=PICTURE, hand=PICTURE), "wrist_cam.*front.*--map KEY=obs.*wrist_cam"),
        (robot(arm=8, front=[64, 48, 3], wrist_cam=PICTURE), r"set the shape to \[64, 64, 3\]"),
        (robot(arm=6, front=PICTURE, wrist_cam=PICTURE), r"observation.state \(8\).*arm \(6\)"),
        (robot(state=9, front=PICTURE, wrist_cam=PICTURE), r"set the shape to \[8\]"),
        (robot(arm=8, front=PICTURE, wrist_cam=PICTURE, extra=1), "does not observe extra"),
        (robot(action=6, arm=8, front=PICTURE, wrist_cam=PICTURE), "commands 7 values, .* 6"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused_by_name(foreign_folder, contract, message):
    """A camera of another name, another size, something more, another action."""
    with pytest.raises(UserError, match=message):
        match(read_foreign(foreign_folder("policy_two_cameras")), contract)


@pytest.mark.parametrize(
    ("center", "spread", "said"),
    [
        (50.0, 50.0, "gripper is about 0 to 100, a binary is -1 open and +1 closed; give gripper"),
        (0.5, 0.5, "gripper is about 0 to 1, a binary"),
        (0.04, 0.038, "gripper is about 0.002 to 0.078, a binary"),
        (0.0, 1.0, ""),  # limits of -1 and 1
        (0.8, 0.6, ""),  # mean and deviation where nine of ten are closed
        (-1.0, 0.0, ""),  # always open, and the same in the original's way
        (1.0, 1.0, ""),
    ],
)
def test_a_gripper_that_would_never_open_is_no_binary(foreign_folder, center, spread, said):
    """A binary goes by the sign."""
    foreign = read_foreign(foreign_folder(NAME))
    action = Vector("action", torch.tensor([0, 0, center]), torch.tensor([1, 1, spread]))
    told = contract_of(foreign).text.replace(
        "size: 3}", "size: 2}, {name: gripper, kind: binary}", 1
    )
    foreign, contract = replace(foreign, action=action), Contract.from_text(told)
    if not said:
        assert set(match(foreign, contract)) == {f"observation.{key}" for key in KEYS}
        return
    with pytest.raises(UserError, match=re.escape(said)):
        match(foreign, contract)


def test_a_state_may_be_several_streams_and_cameras_are_named(foreign_folder, tmp_path):
    """Parts in the contract's order, or as --map says; the network is told the same."""
    foreign = read_foreign(foreign_folder("policy_two_cameras"))
    contract = robot(hand=PICTURE, position=3, turn=4, grip=1, front=PICTURE)
    said = {"observation.images.wrist_cam": ("hand",)}
    assert match(foreign, contract, said)["observation.state"] == ("position", "turn", "grip")
    said["observation.state"] = ("grip", "turn", "position")
    assert match(foreign, contract, said)["observation.state"] == ("grip", "turn", "position")
    for wrong, message in (
        ({"state": ("grip",)}, "no 'state'"),
        ({**said, "observation.state": ("gripp",)}, "'grip'"),
    ):
        with pytest.raises(UserError, match=message):
            match(foreign, contract, wrong)


def test_nothing_is_overwritten_or_half_written(foreign_folder, contract, tmp_path, capsys):
    """A folder that is there stays as it is; what is refused leaves nothing."""
    folder, out = foreign_folder(NAME), tmp_path / "run"
    out.mkdir()
    (out / "mine").write_text("mine")
    words = ["import", "checkpoint", str(folder), "--contract", str(contract)]
    assert main([*words, *_to(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (out / "mine").read_text() == "mine"
    assert main([*words, *_to(tmp_path / "other"), "--map", "state=observation.stat"]) == 2
    assert "did you mean 'observation.state'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("what", ["empty", "missing", "text"])
def test_what_is_no_checkpoint_is_one_line(tmp_path, contract, capsys, what):
    """And exit code 2."""
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    elif what == "text":
        path.write_text("no checkpoint")
    words = ["import", "checkpoint", str(path), "--contract", str(contract)]
    assert main([*words, *_to(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_numbers_in_another_order_are_the_same_policy(foreign_folder):
    """Streams that split the state, in another order: the same chunk."""
    foreign_policy, matches, arrays = imported(foreign_folder("policy_two_cameras"))
    foreign = read_foreign(foreign_folder("policy_two_cameras"))
    contract = robot(grip=1, wrist_cam=PICTURE, rest=7, front=PICTURE)
    said = {"observation.state": ("rest", "grip")}
    policy = build(foreign, contract, match(foreign, contract, said), "split")
    raw = {key: arrays[f"input/{theirs}"][:, :2] for theirs, (key,) in matches.items()}
    state = raw.pop("state")
    noise = torch.from_numpy(arrays["sample/start"])
    ours = policy.sample(
        {**raw, "rest": state[..., :7], "grip": state[..., 7:]},
        noise=noise,
        sampler="ddim",
        steps=5,
    )
    theirs = foreign_policy.sample({**raw, "state": state}, noise=noise, sampler="ddim", steps=5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_contracts_scale_says_what_their_units_are(foreign_folder, tmp_path):
    """As of an imported dataset: degrees there, radians here, observed and commanded."""
    policy, _, arrays = imported(foreign_folder(NAME))
    foreign = read_foreign(foreign_folder(NAME))
    text = contract_of(foreign).text
    text = text.replace("shape: [4]", "shape: [4], scale: [0.5, 1.0, 2.0, 0.1]")
    text = text.replace("shape: [3]}\naction", "shape: [3], scale: [10.0]}\naction")
    text = text.replace(f"type: {COMMAND}", f"type: {COMMAND}, scale: [0.25]")
    contract = Contract.from_text(text)
    said = list(table(foreign, contract, match(foreign, contract)))
    assert all(line.endswith("times their scale") for line in said)
    scaled = build(foreign, contract, match(foreign, contract), "scaled")
    state, environment = (arrays[f"input/observation.{k}"][:, :1] for k in KEYS)
    noise = torch.from_numpy(arrays["sample/start"])
    ours = scaled.sample(
        {
            "state": state * np.float32([0.5, 1.0, 2.0, 0.1]),
            "environment_state": environment * np.float32(10),
        },
        noise=noise,
    )
    theirs = policy.sample({"state": state, "environment_state": environment}, noise=noise)
    np.testing.assert_allclose(ours, 0.25 * theirs, rtol=1e-4, atol=1e-5)
