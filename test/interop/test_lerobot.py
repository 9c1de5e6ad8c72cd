"""LeRobot's policies, against the numbers that LeRobot's own code gave for them."""

import json
import shutil

import numpy as np
import pytest
import torch
from expressed import apart, contract_of, noise_of, window
from safetensors.torch import load_file, save_file

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.foreign import build, match
from diffusion_policy_ros.interop.importing import read_foreign

NEW = ["policy_quantiles", "policy_batch_norm", "policy_two_cameras", "policy_state"]
ALL = [*NEW, "old_camera", "old_state"]
EXACT = 1e-5


def imported(folder, order=None):
    """Foreign, policy, what is what, and the golden numbers."""
    foreign = read_foreign(folder)
    contract = contract_of(foreign, order)
    matches = match(foreign, contract)
    return build(foreign, contract, matches, "golden"), matches, np.load(folder / "golden.npz")


@pytest.mark.parametrize("name", NEW)
def test_condition_and_denoiser_equal_theirs(foreign_folder, name):
    """What the network is told of the observations, and one call of it, within 1e-5."""
    policy, matches, arrays = imported(foreign_folder(name))
    seen = window(arrays, matches, slice(0, policy.recipe.policy.n_obs_steps))
    sample, steps = (torch.from_numpy(arrays[f"denoiser/{k}"]) for k in ("sample", "timestep"))
    with torch.inference_mode():
        condition = policy.encode(seen)
        assert apart(condition.global_cond, arrays["condition"]) < EXACT
        output = policy.predict(sample, steps, condition)
    assert apart(output, arrays["denoiser/output"]) < EXACT


@pytest.mark.parametrize("name", NEW)
def test_whole_samples_equal_theirs(foreign_folder, name):
    """By its own scheduler and by others, the noise given, also with another order of keys."""
    policy, matches, arrays = imported(foreign_folder(name), order=_reversed(foreign_folder(name)))
    seen = window(arrays, matches, slice(0, policy.recipe.policy.n_obs_steps))
    start = torch.from_numpy(arrays["sample/start"])
    for way, sampler in (("own", None), ("ddim10", "ddim"), ("ddpm", "ddpm")):
        noises = f"sample/{way}/noises"
        draw = noise_of(arrays[noises]) if noises in arrays else None
        if way == "ddpm" and not policy.recipe.policy.clip_sample:
            chunk = ddpm_in_float32(policy, seen, start, draw)
        else:
            steps = len(arrays[f"sample/{way}/timesteps"])
            chunk = policy.sample(seen, noise=start, sampler=sampler, steps=steps, generator=draw)
        assert apart(chunk, arrays[f"sample/{way}/actions_all"]) < EXACT, way
        executed = chunk[:, policy.recipe.policy.executed]
        assert apart(executed, arrays[f"sample/{way}/actions_executed"]) < EXACT, way


def _reversed(folder):
    return range(len(read_foreign(folder).observations))[::-1]


def ddpm_in_float32(policy, seen, start, draw):
    """DDPM with all its steps and no bound, its coefficients rounded as diffusers rounds them.

    1 - alpha of a linear schedule's first steps keeps three digits in float32; what is not clipped
    is 3e-5 apart for that alone.
    """
    settings, sample = policy.recipe.policy, start
    betas = torch.linspace(settings.beta_start, settings.beta_end, settings.num_train_timesteps)
    levels = torch.cat([torch.ones(1), torch.cumprod(1 - betas, 0)])
    with torch.inference_mode():
        condition = policy.encode(seen)
        for step in reversed(range(settings.num_train_timesteps)):
            now, then = levels[step + 1], levels[step]
            beta = 1 - now / then
            noise = policy.predict(sample, torch.full((len(sample),), step), condition)
            clean = (sample - (1 - now) ** 0.5 * noise) / now**0.5
            sample = then**0.5 * beta * clean + (now / then) ** 0.5 * (1 - then) * sample
            sample = sample / (1 - now)
            if step:
                sample = sample + ((1 - then) / (1 - now) * beta) ** 0.5 * draw(sample)
        return policy.normalizer["action"].unnormalize(sample)


@pytest.mark.parametrize("name", ALL)
def test_running_it_gives_their_actions(foreign_folder, name):
    """Chunk after chunk, the window filled with the first frame, as their select_action does."""
    policy, matches, arrays = imported(foreign_folder(name))
    settings = policy.recipe.policy
    theirs, actions = arrays["select_action/actions"], []
    frames = window(arrays, matches, slice(None), slice(0, 1))
    last = min(value.shape[1] for value in frames.values()) - 1
    for number, start in enumerate(torch.from_numpy(arrays["select_action/starts"])):
        now = number * settings.n_action_steps
        calls = [max(0, now + back) for back in range(1 - settings.n_obs_steps, 1)]
        seen = {key: value[:, [min(c, last) for c in calls]] for key, value in frames.items()}
        noises = "select_action/noises"
        given = noise_of(arrays[noises][number]) if noises in arrays else None
        chunk = policy.sample(seen, noise=start, generator=given)
        actions.append(chunk[0, settings.executed])
    assert apart(torch.cat(actions)[: len(theirs)], theirs) < EXACT


def changed(folder, tmp_path, file, change):
    """A copy of the folder with a JSON file changed."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("type", "act", "type 'act'; only 'diffusion'"),
        ("use_peft", True, "only an adapter is saved"),
        ("flow_matching", True, "unknown key 'flow_matching'; install a newer"),
        ("noise_scheduler_type", "DPM", "'dpm' is unknown"),
        ("beta_schedule", "scaled_linear", "'scaled_linear' is unknown"),
        ("prediction_type", "velocity", "'velocity' is unknown"),
        ("horizon", "long", "policy.horizon"),
        ("down_dims", [30], "30 channels"),
        ("input_features", {}, "no 'observation.state'"),
        ("vision_backbone", "resnet101", "vision_backbone 'resnet101' is unknown"),
        ("n_groups", "eight", "n_groups"),
        ("down_dims", 3, "is not laid out as LeRobot's"),
        ("input_shapes", {}, "configuration of 2024; load and save it once"),
    ],
)
def test_what_a_configuration_may_not_be(foreign_folder, tmp_path, key, value, message):
    """Another type, a newer key, an unknown scheduler: each by name, with the cure."""
    folder = changed(
        foreign_folder("policy_quantiles"),
        tmp_path,
        "config.json",
        lambda config: config.update({key: value}),
    )
    with pytest.raises(UserError, match=message):
        imported(folder)


@pytest.mark.parametrize(
    ("file", "step", "message"),
    [
        ("policy_preprocessor.json", {"registry_name": "delta_action_processor"}, "would be anot"),
        ("policy_postprocessor.json", {"class": "my.code.Step"}, "'my.code.Step' is unknown"),
        (
            "policy_preprocessor.json",
            {"registry_name": "device_processor", "config": {"float_dtype": "float16"}},
            "float_dtype: float16",
        ),
        (
            "policy_preprocessor.json",
            {"registry_name": "to_batch_processor", "config": {"clip": 3}},
            "'to_batch_processor' has clip: 3, which is not known; install a newer",
        ),
        (
            "policy_preprocessor.json",
            {"registry_name": "normalizer_processor", "state_file": "../secret.safetensors"},
            "in another folder",
        ),
    ],
)
def test_a_step_that_is_not_understood_ends_the_import(
    foreign_folder, tmp_path, file, step, message
):
    """To leave it out would be another policy."""
    folder = changed(
        foreign_folder("policy_quantiles"), tmp_path, file, lambda c: c["steps"].append(step)
    )
    with pytest.raises(UserError, match=message):
        imported(folder)


def test_a_renamed_observation_is_found_by_its_old_name_too(foreign_folder, tmp_path):
    """Its processor's rename_map says what the dataset called it."""

    def rename(content):
        content["steps"][0]["config"]["rename_map"] = {"old.joints": "observation.state"}

    folder = changed(
        foreign_folder("policy_quantiles"), tmp_path, "policy_preprocessor.json", rename
    )
    assert read_foreign(folder).observations[0].aliases == ("old.joints",)


STATE_FILE = "policy_preprocessor_step_3_normalizer_processor.safetensors"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("observation.state.q99", None, "no 'q99' of 'observation.state'"),
        ("observation.state.q99", torch.full((4,), torch.inf), "not finite"),
        ("observation.state.q99", torch.zeros(3), "has 3 values"),
    ],
)
def test_statistics_that_lack_a_key_are_refused(foreign_folder, tmp_path, name, tensor, message):
    """LeRobot leaves such numbers as they are, without a word."""
    folder = tmp_path / "changed"
    shutil.copytree(foreign_folder("policy_quantiles"), folder)
    stats = load_file(folder / STATE_FILE)
    assert name in stats
    stats.pop(name)
    save_file(stats | ({} if tensor is None else {name: tensor}), folder / STATE_FILE)
    with pytest.raises(UserError, match=message):
        imported(folder)


def test_old_checkpoints_without_statistics_are_refused(foreign_folder, tmp_path):
    """0.4 loads them, with a warning alone."""
    folder = tmp_path / "changed"
    shutil.copytree(foreign_folder("old_camera"), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if k.startswith("diffusion.")}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UserError, match="no policy_preprocessor.json.*no statistics among"):
        imported(folder)
    save_file({**weights, "diffusion.extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="unknown tensor 'diffusion.extra'"):
        imported(folder)


def test_weights_of_another_configuration_are_refused(foreign_folder, tmp_path):
    """By the first that does not fit."""
    folder = changed(
        foreign_folder("policy_quantiles"),
        tmp_path,
        "config.json",
        lambda config: config.update(kernel_size=3),
    )
    with pytest.raises(UserError, match="not those of its configuration: 'denoiser.*copy all"):
        imported(folder)


def test_constants_are_what_their_networks_saw(foreign_folder):
    """A constant input is the -1 that it was, and not divided by nothing; an action comes out."""
    foreign = read_foreign(foreign_folder("policy_batch_norm"))
    state, action = foreign.vectors[0], foreign.action
    (still,) = torch.where(state.spread == 1)[0].tolist()
    (held,) = torch.where(action.spread == 0)[0].tolist()
    policy, _, arrays = imported(foreign_folder("policy_batch_norm"))
    normalized = policy.normalizer["state"].normalize(
        torch.from_numpy(arrays["input/observation.state"])
    )
    assert torch.allclose(normalized[..., still], torch.tensor(-1.0))
    assert np.allclose(arrays["sample/own/actions_all"][..., held], action.center[held])
