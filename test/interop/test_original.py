"""Checkpoints of the original, against the numbers that its own code gave for them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from expressed import apart, contract_of, noise_of
from made_ckpt import Reduced, checkpoint, configured

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.foreign import build, match
from diffusion_policy_ros.interop.importing import read_foreign
from diffusion_policy_ros.interop.official import (
    build_transformer,
    transformer_name,
    unet1d_name,
)
from diffusion_policy_ros.interop.original import UNET as UNET_ARGUMENTS, plain
from diffusion_policy_ros.interop.torch_file import TorchFile
from diffusion_policy_ros.policy.backbones import NORMS, resnet
from diffusion_policy_ros.policy.denoisers import Sizes
from diffusion_policy_ros.policy.denoisers.transformer import Transformer, TransformerSettings
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1D, UNet1DSettings
from diffusion_policy_ros.policy.pretrained import IMAGENET_MEAN, IMAGENET_STD

GOLDEN = Path(__file__).parents[1] / "golden"
LOWDIM = sorted(path.stem for path in GOLDEN.glob("official_policy_*.npz"))
EXACT = 1e-5
POLICY = "diffusion_policy.policy.x."


@pytest.fixture(scope="module")
def hybrid(foreign_folder):
    """A real file of the hybrid image policy, unpacked."""
    return foreign_folder("original_hybrid")


def test_the_restricted_reader_gives_all_of_a_real_file(hybrid):
    """Configuration, and every tensor's shape; the numbers are tested by what they give."""
    names = json.loads((hybrid / "names.json").read_text())
    with TorchFile(hybrid / "latest.ckpt") as file:
        assert plain(file.content["cfg"], "") == json.loads((hybrid / "cfg.json").read_text())
        found = file.content["state_dicts"]["ema_model"]
        assert {name: list(tensor.size) for name, tensor in found.items()} == names


@pytest.mark.parametrize("order", [None, (4, 2, 0, 3, 1)])
def test_the_hybrid_policy_equals_theirs(hybrid, order):
    """Condition, one call of the network, a whole sample of 100 DDPM steps; EMA weights."""
    foreign = read_foreign(hybrid / "latest.ckpt")
    contract = contract_of(foreign, order)
    policy = build(foreign, contract, match(foreign, contract), "golden")
    arrays = np.load(hybrid / "golden.npz")
    seen = {key: arrays[f"input/{key}"] for key in contract.observations}
    sample, steps = (torch.from_numpy(arrays[f"denoiser/{k}"]) for k in ("sample", "timestep"))
    with torch.inference_mode():
        condition = policy.encode(seen)
        output = policy.predict(sample, steps, condition)
    if order is None:
        assert apart(condition.global_cond, arrays["condition"]) < EXACT
        assert list(contract.observations) != sorted(contract.observations)
    assert apart(output, arrays["denoiser/output"]) < EXACT
    start, draw = torch.from_numpy(arrays["sample/start"]), noise_of(arrays["sample/noises"])
    chunk = policy.sample(seen, noise=start, generator=draw)
    assert apart(chunk, arrays["actions_all"]) < EXACT
    assert apart(chunk[:, policy.recipe.policy.executed], arrays["actions_executed"]) < EXACT


def test_a_hybrid_transformer_is_the_same_encoders_and_the_original_s_network(
    hybrid, tmp_path, monkeypatch
):
    """Its condition is that of the U-Net's policy, frame by frame; its network the original's."""
    with TorchFile(hybrid / "latest.ckpt") as file:
        found = file.content["state_dicts"]["ema_model"]
        kept = {n: file.read(t) for n, t in found.items() if not n.startswith("model.")}
    config = json.loads((hybrid / "cfg.json").read_text())
    policy, network = config["policy"], {"n_layer": 2, "n_head": 2, "n_emb": 32}
    policy["_target_"] = f"{POLICY}DiffusionTransformerHybridImagePolicy"
    for name in (*UNET_ARGUMENTS, "obs_as_global_cond"):
        policy.pop(name)
    policy |= {**network, "obs_as_cond": True, "causal_attn": True}
    sizes = {"input_dim": 10, "output_dim": 10, "cond_dim": 137, "horizon": 16, "n_obs_steps": 2}
    arrays = np.load(GOLDEN / "official_policy_transformer_condition_epsilon.npz")
    names = [key.removeprefix("state/") for key in arrays.files if key.startswith("state/")]
    like = Transformer(Sizes(10, 16, tokens=2, token_dim=137), TransformerSettings(**network))
    ours, draw = like.state_dict(), torch.Generator().manual_seed(0)
    shapes = {n: ours[transformer_name(n)].shape for n in names if transformer_name(n) in ours}
    drawn = {n: 0.1 * torch.randn(shape, generator=draw) for n, shape in shapes.items()}
    masks = {"mask": like.mask, "memory_mask": like.memory_mask}
    state = {**kept, **{f"model.{n}": t for n, t in {**drawn, **masks}.items()}}
    path = checkpoint(tmp_path / "a.ckpt", configured(monkeypatch, config), ema_model=state)
    foreign = read_foreign(path)
    contract = contract_of(foreign)
    policy = build(foreign, contract, match(foreign, contract), "hybrid")
    golden = np.load(hybrid / "golden.npz")
    with torch.inference_mode():
        condition = policy.encode({key: golden[f"input/{key}"] for key in contract.observations})
        assert apart(condition.tokens.flatten(1), golden["condition"]) < EXACT
        sample, steps = (torch.from_numpy(golden[f"denoiser/{k}"]) for k in ("sample", "timestep"))
        reference = build_transformer(
            {**network, **sizes, "causal_attn": True}, {**drawn, **masks}
        )
        expected = reference(sample, steps, cond=condition.tokens)
        assert apart(policy.predict(sample, steps, condition), expected) < EXACT


def lowdim_config(told, **changes):
    """The configuration that the original has for a low-dimensional policy."""
    network = dict(told["network"])
    kind = network.pop("kind")
    is_unet = kind == "unet1d"
    name = "Unet" if is_unet else "Transformer"
    given = {k: v for k, v in told.items() if k.startswith(("obs_as", "pred_", "n_", "horizon"))}
    policy = {
        "_target_": f"diffusion_policy.policy.diffusion_{name.lower()}_lowdim_policy."
        f"Diffusion{name}LowdimPolicy",
        "model": {
            "_target_": "diffusion_policy.model.diffusion."
            + ("m.ConditionalUnet1D" if is_unet else "m.TransformerForDiffusion"),
            **network,
        },
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
            "num_train_timesteps": 100,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": True,
            "set_alpha_to_one": True,
            "steps_offset": 0,
            "prediction_type": told["prediction_type"],
        },
        "obs_dim": told["obs_dim"],
        "action_dim": told["action_dim"],
        "num_inference_steps": told["num_inference_steps"],
        **({"oa_step_convention": True} if is_unet else {}),
        **given,
        **changes,
    }
    return {"policy": policy, "training": {"use_ema": True}, "n_latency_steps": 0}


def scaling(values):
    """Scale and offset as the original fits them: limits, constants only moved."""
    low, high = torch.from_numpy(values.min(0)), torch.from_numpy(values.max(0))
    reach = high - low
    still = reach < 1e-4
    scale = torch.where(still, 1.0, 2 / torch.where(still, 2.0, reach))
    return scale, torch.where(still, -low, -1 - scale * low)


@pytest.fixture
def lowdim(monkeypatch, tmp_path):
    """A function: name of golden numbers, changes of its policy -> a .ckpt, and the numbers."""

    def made(name, training=None, drop="", **changes):
        arrays = np.load(GOLDEN / f"{name}.npz")
        state = {
            f"model.{key.removeprefix('state/')}": torch.from_numpy(arrays[key])
            for key in arrays.files
            if key.startswith("state/")
        }
        for key in ("obs", "action"):
            for part, value in zip(
                ("scale", "offset"), scaling(arrays[f"fit/{key}"]), strict=True
            ):
                state[f"normalizer.params_dict.{key}.{part}"] = value
        state["mask_generator._dummy_variable"] = torch.zeros(0)
        state.pop(drop, None)
        config = lowdim_config(json.loads(str(arrays["config"])), **changes)
        config["training"] |= training or {}
        other = {key: value + 1 for key, value in state.items()}
        path = tmp_path / f"{name}.ckpt"
        checkpoint(path, configured(monkeypatch, config), model=other, ema_model=state)
        return path, arrays

    return made


def sampled(path, arrays):
    """The policy's chunk from the golden start."""
    foreign = read_foreign(path)
    contract = contract_of(foreign)
    policy = build(foreign, contract, match(foreign, contract), "golden")
    seen = {"obs": arrays["obs"][:, : policy.recipe.policy.n_obs_steps]}
    return policy, policy.sample(seen, noise=torch.from_numpy(arrays["sample/x_T"]))


@pytest.mark.parametrize("name", LOWDIM)
def test_low_dimensional_policies_equal_theirs(lowdim, name):
    """Both networks, every way of conditioning, both targets: EMA weights, normaliser, steps."""
    path, arrays = lowdim(name)
    policy, chunk = sampled(path, arrays)
    assert apart(chunk, arrays["sample/action_pred"]) < EXACT
    executed = chunk[:, policy.recipe.policy.executed]
    assert apart(executed, arrays["sample/action"]) < EXACT


def test_the_weights_are_those_that_the_configuration_says(lowdim):
    """Without EMA those that were trained."""
    path, arrays = lowdim(LOWDIM[0])
    averaged = read_foreign(path)
    path, _ = lowdim(LOWDIM[0], training={"use_ema": False})
    trained = read_foreign(path)
    for name, tensor in averaged.denoiser.items():
        assert torch.equal(trained.denoiser[name], tensor + 1)
    assert "EMA" in averaged.origin and "EMA" not in trained.origin


def torchvision_name(name):
    """Our name of a ResNet 18's tensor -> torchvision's."""
    index, _, rest = name.partition(".")
    if int(index) < 2:
        return f"{('conv1', 'bn1')[int(index)]}.{rest}"
    stage, number = divmod(int(index) - 4, 2)
    rest = rest.replace("norm", "bn").replace("around.", "downsample.")
    return f"layer{stage + 1}.{number}.{rest}"


@pytest.mark.parametrize("shared", [False, True])
def test_an_image_policy_with_pooled_encoders(tmp_path, monkeypatch, shared):
    """Pictures first, keys sorted; -1..1, the centre's crop, then ImageNet's; means of the maps.

    Against these steps by hand: no numbers of the original's own were at hand.
    """
    draw = torch.Generator().manual_seed(0)
    eye = resnet("resnet18", 3, NORMS["frozen" if shared else "group"]).eval()
    names = ["rgb"] if shared else ["top", "hand"]
    state = {
        f"obs_encoder.key_model_map.{n}.{torchvision_name(k)}": t
        for n in names
        for k, t in eye.state_dict().items()
    }
    state |= {f"model.{k}": v for k, v in _unet_state(1024 + 5, draw).items()}
    for key, size in (("zz", 3), ("arm", 2), ("top", 1), ("hand", 1), ("action", 4)):
        scale = 2.0 if key in ("top", "hand") else 1.5
        state[f"normalizer.params_dict.{key}.scale"] = torch.full((size,), scale)
        state[f"normalizer.params_dict.{key}.offset"] = torch.full((size,), -1.0)
    picture = {"shape": [3, 40, 48], "type": "rgb"}
    observed = {"zz": {"shape": [3]}, "top": picture, "arm": {"shape": [2]}, "hand": picture}
    config = image_config(observed, share_rgb_model=shared)
    path = checkpoint(tmp_path / "a.ckpt", configured(monkeypatch, config), ema_model=state)
    foreign = read_foreign(path)
    assert [o.name for o in foreign.observations] == ["hand", "top", "arm", "zz"]
    contract = contract_of(foreign)
    ours = build(foreign, contract, match(foreign, contract), "image")
    seen = {
        "top": torch.randint(0, 256, (1, 2, 40, 48, 3), generator=draw, dtype=torch.uint8),
        "hand": torch.randint(0, 256, (1, 2, 40, 48, 3), generator=draw, dtype=torch.uint8),
        "arm": torch.randn(1, 2, 2, generator=draw),
        "zz": torch.randn(1, 2, 3, generator=draw),
    }
    with torch.inference_mode():
        parts = []
        for key in ("hand", "top"):
            pixels = 2 * seen[key].float() / 255 - 1
            cut = pixels[:, :, 4:37, 4:44]  # 7 spare rows: torchvision begins at 4
            scaled = (cut - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
            maps = eye(scaled.flatten(0, 1).permute(0, 3, 1, 2))
            parts.append(maps.mean((2, 3)).view(1, 2, -1))
        parts += [seen[key] * 1.5 - 1 for key in ("arm", "zz")]
        expected = torch.cat(parts, -1).flatten(1)
        assert apart(ours.encode(seen).global_cond, expected) < EXACT


def image_config(observed, **encoder):
    """The configuration that the original has for an image policy."""
    config = lowdim_config({**IMAGE_TOLD, "network": {"kind": "unet1d"}})
    policy = config["policy"]
    for name in ("model", "obs_dim", "action_dim", "oa_step_convention"):
        policy.pop(name)
    policy |= {
        "_target_": f"{POLICY}DiffusionUnetImagePolicy",
        "shape_meta": {"obs": observed, "action": {"shape": [4]}},
        "obs_encoder": {
            "_target_": "x.MultiImageObsEncoder",
            "rgb_model": {"_target_": "x.get_resnet", "name": "resnet18", "weights": None},
            "resize_shape": [40, 48],
            "crop_shape": [33, 40],
            "use_group_norm": True,
            "imagenet_norm": True,
            **encoder,
        },
        **IMAGE_NETWORK,
    }
    return config


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"resize_shape": [20, 24]}, "pictures are resized, which torchvision did differently"),
        ({"random_crop": False}, "crop_shape without random_crop"),
        ({"rgb_model": {"_target_": "x.get_r3m", "name": "resnet18"}}, "rgb_model is 'x.get_r3m'"),
        ({"rgb_model": {"_target_": "x.get_resnet", "name": "resnet101"}}, "'resnet101'"),
        ({"_target_": "x.TimmObsEncoder"}, "'x.TimmObsEncoder' is unknown"),
        ({"feature_aggregation": "cls"}, "unknown argument 'feature_aggregation'"),
    ],
)
def test_other_encoders_of_image_policies_are_refused(tmp_path, monkeypatch, encoder, message):
    """By name, before anything is built."""
    observed = {"top": {"shape": [3, 40, 48], "type": "rgb"}}
    config = configured(monkeypatch, image_config(observed, **encoder))
    state = {f"normalizer.params_dict.top.{k}": torch.ones(1) for k in ("scale", "offset")}
    path = checkpoint(tmp_path / "a.ckpt", config, ema_model=state)
    with pytest.raises(UserError, match=message):
        read_foreign(path)


IMAGE_TOLD = {
    "obs_dim": 0,
    "action_dim": 4,
    "horizon": 8,
    "n_obs_steps": 2,
    "n_action_steps": 4,
    "num_inference_steps": 4,
    "obs_as_global_cond": True,
    "prediction_type": "epsilon",
}
IMAGE_NETWORK = {"diffusion_step_embed_dim": 8, "down_dims": [8, 16]}


def _unet_state(frame, draw):
    """Of the original's U-Net, drawn."""
    arrays = np.load(GOLDEN / "official_policy_unet_global_epsilon.npz")
    names = [key.removeprefix("state/") for key in arrays.files if key.startswith("state/")]
    settings = UNet1DSettings(down_dims=(8, 16), diffusion_step_embed_dim=8, final_n_groups=8)
    ours = UNet1D(Sizes(4, 8, global_cond=2 * frame), settings).state_dict()
    shapes = {name: ours[unet1d_name(name)].shape for name in names if unet1d_name(name) in ours}
    return {name: 0.1 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


UNET = "official_policy_unet_global_epsilon"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_target_": f"{POLICY}DiffusionUnetTimmPolicy"}, "timm's CLIP.*no stream of a contract"),
        ({"_target_": f"{POLICY}DiffusionUnetVideoPolicy"}, "encoder is of videos"),
        ({"_target_": f"{POLICY}FlowPolicy"}, "policy '.*FlowPolicy' is unknown"),
        ({"_target_": "os.system"}, "policy 'os.system' is unknown"),
        ({"oa_step_convention": False}, "oa_step_convention is false"),
        ({"eta": 0.5}, "unknown argument 'eta'"),
        ({"horizon": None}, "no 'horizon'"),
        ({"horizon": "${horizon}"}, "not filled in"),
        ({"horizon": 15}, "horizon"),
        ({"noise_scheduler": {"_target_": "x.DPMSolver"}}, "'DPMSolver' is unknown"),
        (
            {"noise_scheduler": {"_target_": "x.DDIMScheduler", "set_alpha_to_one": False}},
            "set_alpha_to_one: False",
        ),
        (
            {"noise_scheduler": {"_target_": "x.DDPMScheduler", "beta_schedule": "sigmoid"}},
            "'sigmoid' is unknown",
        ),
        ({"noise_scheduler": "ddpm"}, "not laid out"),
        ({"model": {"_target_": "x.ConditionalUnet1D", "input_dimm": 3}}, "'input_dimm'"),
        ({"model": {"_target_": "x.Other"}}, "network 'Other' is unknown"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(lowdim, changes, message):
    """With the reason, or the near name."""
    path, arrays = lowdim(UNET, **changes)
    with pytest.raises(UserError, match=message) as caught:
        sampled(path, arrays)
    assert str(path) in str(caught.value)


def test_other_files_are_named_for_what_they_are(tmp_path, monkeypatch):
    """Lightning's, a plain state dict, one without weights, one that names os.system."""
    path = tmp_path / "a.ckpt"
    torch.save({"pytorch-lightning_version": "2.0", "state_dict": {}}, path)
    with pytest.raises(UserError, match="is a checkpoint of Lightning"):
        read_foreign(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="another project's: it holds weight"):
        read_foreign(path)
    torch.save([1], path)
    with pytest.raises(UserError, match="is no checkpoint"):
        read_foreign(path)
    policy = {"_target_": f"{POLICY}DiffusionUnetLowdimPolicy"}
    checkpoint(path, configured(monkeypatch, {"policy": policy}), model={})
    with pytest.raises(UserError, match="has no '"):
        read_foreign(path)
    torch.save({"cfg": Reduced(os.system, "true"), "state_dicts": {}}, path)
    with pytest.raises(UserError, match=r"names \w+\.system"):
        read_foreign(path)


def test_a_configuration_without_end_is_refused(tmp_path, monkeypatch):
    """One that holds itself, and one that doubles at each level."""
    endless = configured(monkeypatch, {"policy": {}})
    endless._content["policy"] = endless
    doubled = [0]
    for _ in range(40):
        doubled = [doubled, doubled]
    for number, config in enumerate((endless, {"policy": {}, "more": doubled})):
        path = tmp_path / f"{number}.ckpt"
        checkpoint(path, config)
        with pytest.raises(UserError, match="configuration has no end"):
            read_foreign(path)


def test_a_normaliser_that_lacks_a_key_is_refused(lowdim):
    """It was saved before it was fitted."""
    path, _ = lowdim(UNET, drop="normalizer.params_dict.obs.scale")
    with pytest.raises(UserError, match="no 'scale' of 'obs'"):
        read_foreign(path)
