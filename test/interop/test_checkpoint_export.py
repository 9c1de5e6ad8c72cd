"""Checkpoints of ours in LeRobot's layout: what is read again is the same policy."""

import json

import numpy as np
import pytest
import torch
from expressed import apart, contract_of
from safetensors.torch import load_file

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.foreign import build, match
from diffusion_policy_ros.interop.importing import import_checkpoint, read_foreign
from diffusion_policy_ros.interop.lerobot_export import (
    Sampling,
    export_lerobot,
    refuse_inexpressible,
)
from diffusion_policy_ros.policy.checkpoint import load_policy, save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe

CAMERA = "type: sensor_msgs/msg/Image, shape: [48, 64, 3]"
CONTRACT = f"""
name: robot
rate_hz: 10
anchor: wrist
observations:
  wrist: {{topic: /wrist, {CAMERA}}}
  joints: {{topic: /joints, type: sensor_msgs/msg/JointState, shape: [5]}}
  front: {{topic: /front, {CAMERA}}}
  turn: {{topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}}
action:
  fields: [{{name: joints, kind: joint_position, size: 5}}, {{name: grip, kind: binary}}]
  record: {{topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [6]}}
"""
RECIPE = {
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 4,
    "num_train_timesteps": 20,
    "num_inference_steps": 5,
    "timestep_spacing": "leading",
    "denoiser": {"down_dims": [16, 32], "final_n_groups": 8},
    "image_encoder": {"keypoints": 4, "features": 8, "relu": True},
}
EYES = RECIPE["image_encoder"]


def changed(**changes):
    """A recipe of one encoder for all, or with other settings."""
    return {**RECIPE, **changes}


ONE_CAMERA = "\n".join(line for line in CONTRACT.splitlines() if "front" not in line)


def drawn(settings, contract=CONTRACT):
    """A policy with drawn weights."""
    torch.manual_seed(0)
    recipe = Recipe.from_text(json.dumps({"policy": settings}))
    return DiffusionPolicy(recipe, Contract.from_text(contract))


def saved(tmp_path, settings):
    """A checkpoint with drawn weights and statistics, a dimension of each is constant."""
    policy = drawn(settings)
    random = np.random.default_rng(0)
    for name, tensor in policy.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    statistics = {}
    for key, size in (("joints", 5), ("turn", 4), ("action", 6)):
        low = random.normal(size=size) * 100 if key == "joints" else -np.ones(size)
        high = low + np.where(np.arange(size) == 2, 0.0, 2.0)
        statistics[key] = {"min": low, "max": high}
    policy.set_statistics(statistics)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
    return save_checkpoint(tmp_path / "run", policy)


def seen(policy, batch=2):
    """Windows within the statistics."""
    random, center = np.random.default_rng(1), policy.normalizer["joints"].center.numpy()
    shape = (batch, policy.recipe.policy.n_obs_steps)
    return {
        "wrist": random.integers(0, 256, (*shape, 48, 64, 3), dtype=np.uint8),
        "front": random.integers(0, 256, (*shape, 48, 64, 3), dtype=np.uint8),
        "joints": (center + random.uniform(-1, 1, (*shape, 5))).astype(np.float32),
        "turn": random.uniform(-1, 1, (*shape, 4)).astype(np.float32),
    }


@pytest.mark.parametrize(
    "settings",
    [
        RECIPE,
        changed(image_encoder={**EYES, "shared": True, "crop": [33, 40]}),
        changed(
            image_encoder={**EYES, "norm": "frozen", "resize": [40, 52], "crop": 0.9},
            image_encoders={
                "front": {
                    **EYES, "norm": "frozen", "resize": [40, 52], "crop": 0.9,
                    "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
                }
            },
            sampler="ddpm",
            num_inference_steps=20,
            timestep_spacing="trailing",
            prediction_type="sample",
        ),
    ],
)  # fmt: skip
def test_what_is_exported_gives_the_same_actions_when_it_is_read(tmp_path, settings):
    """Own and shared encoders, both norms, crops, resizes, pixel statistics, constants."""
    run = saved(tmp_path, settings)
    words = ["export", "checkpoint", str(run), "--format", "lerobot", "--out"]
    assert main([*words, str(tmp_path / "theirs")]) == 0
    ours = load_policy(run)
    back = import_checkpoint(tmp_path / "theirs", ours.contract, tmp_path / "back")
    again, window = load_policy(back), seen(ours)
    start = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(2))
    noises = torch.randn(20, 2, 8, 6, generator=torch.Generator().manual_seed(3))

    def chunk(policy):
        left = iter(noises)
        return policy.sample(window, noise=start, generator=lambda like: next(left))

    assert apart(chunk(again), chunk(ours)) < 1e-5
    assert "Imported from: LeRobot" in (back / "card.md").read_text()
    told = (tmp_path / "theirs" / "README.md").read_text()
    assert "`observation.state`: " in told and "`observation.images.wrist`: wrist" in told
    assert "joints: joint_position, grip: binary" in told


@pytest.mark.parametrize(
    "eyes", [{}, {"shared": True, "crop": [33, 40]}, {"norm": "frozen"}], ids=str
)
def test_lerobot_s_own_code_gives_the_same_actions(tmp_path, eyes):
    """Its loader, its processors, its network and its sampler, where it is installed."""
    pytest.importorskip("lerobot", reason="needs lerobot: pip install lerobot")
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy as Theirs
    from lerobot.policies.factory import make_pre_post_processors

    run = saved(tmp_path, changed(image_encoder={**EYES, **eyes}))
    out = export_lerobot(run, tmp_path / "theirs", "ddim", 5)
    ours, theirs = load_policy(run), Theirs.from_pretrained(str(out)).eval()
    on_cpu = {"device_processor": {"device": "cpu"}}
    before, after = make_pre_post_processors(
        theirs.config,
        pretrained_path=str(out),
        preprocessor_overrides=on_cpu,
        postprocessor_overrides=on_cpu,
    )
    window, cameras = seen(ours), list(theirs.config.image_features)
    frames = []
    for step in range(2):
        frame = {"observation.state": [window["joints"][:, step], window["turn"][:, step]]}
        frame = {key: torch.from_numpy(np.concatenate(parts, 1)) for key, parts in frame.items()}
        for key in cameras:
            pixels = torch.from_numpy(window[key.rpartition(".")[2]][:, step])
            frame[key] = pixels.permute(0, 3, 1, 2) / 255
        frames.append(before(frame))
    told = {
        "observation.state": torch.stack([f["observation.state"] for f in frames], 1),
        "observation.images": torch.stack(
            [torch.stack([f[key] for key in cameras], 1) for f in frames], 1
        ),
    }
    start = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        condition = theirs.diffusion._prepare_global_conditioning(told)
        found = after(theirs.diffusion.conditional_sample(2, global_cond=condition, noise=start))
    assert apart(found, ours.sample(window, noise=start, sampler="ddim", steps=5)) < 1e-5


@pytest.mark.parametrize("name", ["policy_two_cameras", "policy_batch_norm"])
def test_lerobot_s_own_policies_come_back_as_they_were(foreign_folder, tmp_path, name):
    """Every tensor under its name, but what ENV is there; so the names are LeRobot's."""
    folder = foreign_folder(name)
    foreign = read_foreign(folder)
    contract = contract_of(foreign)
    run = import_checkpoint(folder, contract, tmp_path / "run")
    export_lerobot(run, tmp_path / "back")
    theirs, ours = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "back"))
    if len(foreign.cameras) == 1:  # whether it is shared or not is the same
        ours = {key.replace("rgb_encoder.0.", "rgb_encoder."): t for key, t in ours.items()}
    assert ours.keys() == theirs.keys()
    has_environment = any(o.name.endswith("environment_state") for o in foreign.observations)
    for key, tensor in theirs.items():
        assert ours[key].shape == tensor.shape
        if not (has_environment and "cond_encoder" in key) and not key.endswith("tracked"):
            torch.testing.assert_close(ours[key], tensor, msg=key)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    given = json.loads((folder / "config.json").read_text())
    own = {"use_separate_rgb_encoder_per_camera"} if len(foreign.cameras) == 1 else set()
    own |= {"input_features", "normalization_mapping", "num_inference_steps"}
    for key in ("crop_shape", "resize_shape", "crop_ratio", *(config.keys() - own)):
        if key not in ("drop_n_last_frames", "do_mask_loss_for_padding"):
            assert config[key] == given[key], key
    again = read_foreign(tmp_path / "back")
    policy = build(again, contract, match(again, contract, _said(again, contract)), "again")
    arrays = np.load(folder / "golden.npz")
    window = {
        key: arrays[f"input/{theirs.name}"][:, :2]
        for theirs in foreign.observations
        for key in [theirs.name.rpartition(".")[2]]
    }
    start = torch.from_numpy(arrays["sample/start"])
    chunk = policy.sample(window, noise=start, sampler="ddim", steps=10)
    assert apart(chunk, arrays["sample/ddim10/actions_all"]) < 1e-5


def _said(foreign, contract):
    vectors = tuple(k for k, s in contract.observations.items() if not s.is_image)
    return {"observation.state": vectors}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (changed(denoiser={"name": "mlp"}), "LeRobot has no mlp; train a unet1d"),
        (changed(denoiser={"down_dims": [16, 32], "n_groups": 4}), "4 groups, LeRobot's 8"),
        (changed(horizon=6, n_action_steps=4), "horizon 6: .* multiple of 4"),
        (changed(prediction_type="v"), "LeRobot predicts no v"),
        (changed(temporal_encoder={"hidden_size": 8}), "all frames in a row"),
        (changed(tasks=["lift", "turn"]), "told no task"),
        (changed(pred_action_steps_only=True), "whole horizon"),
        (changed(orientation="rotation_6d"), "sees poses otherwise"),
        (changed(image_encoder={**EYES, "relu": False}), "a ReLU after them; .* relu: true"),
        (changed(image_encoder={**EYES, "features": 6}), "2 features a keypoint"),
        (changed(image_encoder={**EYES, "pool": "mean"}), "no resnet18 with pool mean"),
        (changed(image_encoder={**EYES, "name": "small_conv"}), "no small_conv"),
        (changed(image_encoder={**EYES, "crop_shape": [41, 57]}), "begins elsewhere"),
        (changed(image_encoders={"front": {**EYES, "norm": "frozen"}}), "one size and encoder"),
        (changed(timestep_spacing="trailing"), "trailing.*--steps 5 .*--steps 20"),
        (changed(sampler="dpmpp_2m"), "LeRobot has no dpmpp_2m"),
        (changed(eta=0.5), "DDIM adds no noise"),
    ],
)  # fmt: skip
def test_what_lerobot_cannot_express_is_refused_with_the_reason(settings, message):
    """Network, condition, poses, encoders and steps, each by name."""
    contract = CONTRACT if "image_encoders" in settings else ONE_CAMERA
    policy = drawn(settings, contract)
    own = policy.recipe.policy
    sampling = Sampling(own.sampler, own.num_inference_steps)
    with pytest.raises(UserError, match=message):
        refuse_inexpressible(policy, sampling, is_own=True, where="run")


def test_cameras_of_several_sizes_are_refused():
    """LeRobot wants one before it resizes them: it would not load what is written."""
    large = CONTRACT.replace(f"/front, {CAMERA}", f"/front, {CAMERA}".replace("48, 64", "96, 128"))
    policy = drawn(changed(image_encoder={**EYES, "resize": [40, 52]}), large)
    with pytest.raises(UserError, match="cameras are of one size, these are 64x48 and 128x96"):
        refuse_inexpressible(policy, Sampling("ddim", 5), is_own=True, where="run")


@pytest.mark.parametrize(
    ("left", "message"), [(("front", "wrist"), "needs a camera"), (("joints", "turn"), "a state")]
)
def test_lerobot_needs_a_state_and_a_camera(left, message):
    """Which its configuration asks for."""
    lines = [
        x for x in CONTRACT.splitlines() if not x.strip().startswith(tuple(f"{k}:" for k in left))
    ]
    text = (
        "\n".join(lines).replace("anchor: wrist", "anchor: joints")
        if "wrist" in left
        else "\n".join(lines)
    )
    with pytest.raises(UserError, match=message):
        refuse_inexpressible(drawn(RECIPE, text), Sampling("ddim", 5), is_own=True, where="run")


def test_its_cure_works_and_nothing_is_overwritten(tmp_path):
    """--steps says how LeRobot samples; a folder that is there stays."""
    shared = {**EYES, "shared": True}
    run = saved(tmp_path, changed(timestep_spacing="trailing", image_encoder=shared))
    export_lerobot(run, tmp_path / "theirs", steps=5)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (config["noise_scheduler_type"], config["num_inference_steps"]) == ("DDIM", 5)
    with pytest.raises(UserError, match="is there already"):
        export_lerobot(run, tmp_path / "theirs", steps=5)
    with pytest.raises(UserError, match="21 steps, trained with 20"):
        export_lerobot(run, tmp_path / "other", steps=21)
