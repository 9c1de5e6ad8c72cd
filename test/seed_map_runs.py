"""What the entries of doc/reference/seed-map.md do: each is run with a tiny budget.

`PROPERTIES` has a function for each entry; it raises where the property does not hold.
"""

import dataclasses
import functools
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.backbones import resnet
from diffusion_policy_ros.policy.checkpoint import load_policy, save_checkpoint
from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.mlp import MLP, MLPSettings
from diffusion_policy_ros.policy.denoisers.transformer import Transformer, TransformerSettings
from diffusion_policy_ros.policy.denoisers.unet1d import (
    Level,
    ResidualBlock,
    SinusoidalEmbedding,
    UNet1D,
    UNet1DSettings,
)
from diffusion_policy_ros.policy.devices import pick_device
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.eyes import (
    SpatialSoftmax,
    TemporalEncoder,
    TemporalEncoderSettings,
)
from diffusion_policy_ros.policy.inpainting import MaskGenerator
from diffusion_policy_ros.policy.normalizer import Normalizer
from diffusion_policy_ros.policy.objective import diffusion_loss, masked_mean, training_step
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.policy.samplers import (
    SAMPLERS,
    ddpm,
    ddpm_step,
    inference_timesteps,
    noise_source,
)
from diffusion_policy_ros.policy.schedules import SCHEDULES, add_noise, make_schedule
from diffusion_policy_ros.policy.sizes import output_size, param_count
from diffusion_policy_ros.runtime.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
STATE = Contract.load("mini_lift_state")
SHAPE = (2, 16, 7)
TINY_MLP = "denoiser: {name: mlp, hidden_size: 16, num_layers: 1}"
TINY_UNET = "denoiser: {name: unet1d, down_dims: [8, 16], kernel_size: 3, n_groups: 4}"


def randn(*shape, seed=0):
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def policy(more="", denoiser=TINY_MLP, contract="mini_lift_state"):
    """A policy that has learned nothing."""
    torch.manual_seed(0)
    recipe = Recipe.from_text(f"policy: {{{denoiser}{', ' if more else ''}{more}}}")
    return DiffusionPolicy(recipe, Contract.load(contract))


def window(made, batch=2, seed=0):
    """Observations of a policy, random."""
    random, seen = np.random.default_rng(seed), made.recipe.policy.n_obs_steps
    return {
        key: random.integers(0, 256, (batch, seen, *stream.shape), np.uint8)
        if stream.is_image
        else random.uniform(0.1, 0.5, (batch, seen, *stream.shape)).astype(np.float32)
        for key, stream in made.contract.observations.items()
    }


def chunk(made, seed=0, **how):
    """What a policy samples from one window and one noise."""
    return made.sample(window(made), generator=torch.Generator().manual_seed(seed), **how)


def batch_of(made):
    """A batch to learn from."""
    actions = randn(2, made.recipe.policy.horizon, made.contract.action_dim).numpy()
    return {**window(made), "action": actions}


def condition_of(made, seed=0):
    """The condition that an observation window becomes."""
    return made.encode(window(made, seed=seed))


# ----------------------------------------------------------------------------------- properties


def samples_chunks():
    """Finite, of the contract's size, the same from the same noise and others from another."""
    made = policy()
    first, same, other = chunk(made, 0), chunk(made, 0), chunk(made, 1)
    assert first.shape == (2, 16, 7) and first.isfinite().all()
    assert torch.equal(first, same) and not torch.allclose(first, other)


def actions_of(name):
    """A chunk has as many values as the contract's action."""
    assert policy().contract.action_dim == chunk(policy()).shape[-1] == 7, name


def executed_actions():
    """So many of a chunk are executed."""
    settings = policy("n_action_steps: 5").recipe.policy
    assert Sampling.of(settings).n_action_steps == 5
    assert settings.executed == slice(1, 6)


def horizon():
    """So many are predicted."""
    assert chunk(policy("horizon: 12")).shape[1] == 12


def observed_frames():
    """Each observed frame adds to what the denoiser is told."""
    one, three = (policy(f"n_obs_steps: {n}").sizes.global_cond for n in (1, 3))
    assert three == 3 * one > 0


def predicted_alone():
    """The executed actions and no others."""
    assert chunk(policy("pred_action_steps_only: true")).shape[1] == 8


def trains():
    """The loss falls when its gradient is followed."""
    torch.manual_seed(0)
    made = DiffusionPolicy(Recipe.from_text(f"policy: {{{TINY_MLP}}}"), STATE)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = made.loss(batch_of(made), torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def wants_condition():
    """The answer depends on the condition, whose size is the one that it was built for."""
    net, noisy, step = mlp(), randn(*SHAPE), torch.tensor([3, 5])
    one, other = (net(noisy, step, Condition(randn(2, 5, seed=s))) for s in (1, 2))
    assert one.shape == SHAPE and not torch.allclose(one, other)
    try:
        net(noisy, step, Condition(randn(2, 6)))
    except ValueError:
        return
    raise AssertionError("a condition of another size was taken")


def mlp(**how):
    """A perceptron."""
    torch.manual_seed(0)
    return MLP(Sizes(7, 16, 5), MLPSettings(**{"hidden_size": 8, "num_layers": 1, **how}))


def grows(setting):
    """More of it are more weights."""
    few, many = (param_count(mlp(**{setting: n})) for n in (4, 8))
    assert many > few


def step_embedding():
    """A sine and a cosine of each frequency, different at every step."""
    found = SinusoidalEmbedding(64)(torch.arange(100))
    assert found.shape == (100, 64)
    torch.testing.assert_close(found.square().sum(-1), torch.full((100,), 32.0))
    assert torch.pdist(found).min() > 0.1


def step_embedding_sizes():
    """Of the size that the recipe says."""
    net = mlp(diffusion_step_embed_dim=32)
    assert net.step_embedding(torch.zeros(1)).shape == (1, 32)


def encodes_frames():
    """A vector a frame, of what is observed in it alone."""
    made = policy(contract="mini_lift", denoiser=SMALL_EYES)
    seen = window(made)
    as_tensors = {key: torch.from_numpy(value) for key, value in seen.items()}
    found = made.encoder(as_tensors, made.normalizer)
    assert found.shape[:2] == (2, 2)
    as_tensors["agentview_image"] = as_tensors["agentview_image"].clone()
    as_tensors["agentview_image"][:, 1] = 255 - as_tensors["agentview_image"][:, 1]
    other = made.encoder(as_tensors, made.normalizer)
    torch.testing.assert_close(found[:, 0], other[:, 0])
    assert not torch.allclose(found[:, 1], other[:, 1])


SMALL_EYES = (
    f"{TINY_MLP}, image_encoder: {{name: small_conv, keypoints: 4, features: 6, crop: 1.0}}"
)


def temporal(name):
    """A window becomes one vector, in which every frame counts."""
    torch.manual_seed(0)
    encoder = TemporalEncoder(5, 3, TemporalEncoderSettings(name=name, hidden_size=9))
    frames = randn(2, 3, 5)
    found = encoder(frames)
    assert found.shape == (2, 9)
    for frame in range(3):
        changed = frames.clone()
        changed[:, frame] += 1.0
        assert not torch.allclose(found, encoder(changed))


def perfect_is_no_loss():
    """Who predicts the noise exactly has none; who predicts nothing that of the noise."""
    schedule, clean, noise = make_schedule(), randn(*SHAPE), randn(*SHAPE, seed=1)
    steps = torch.tensor([3, 50])
    how = {"prediction_type": "epsilon"}
    assert diffusion_loss(lambda *_: noise, schedule, clean, noise, steps, **how) == 0
    none = diffusion_loss(lambda x, t: 0 * x, schedule, clean, noise, steps, **how)
    torch.testing.assert_close(none, noise.square().mean())


def loss_and_prediction():
    """A scalar that its prediction explains."""
    net, clean = mlp(), randn(*SHAPE)
    told = Condition(randn(2, 5))
    generator = torch.Generator().manual_seed(0)
    loss, noise = training_step(lambda x, t: net(x, t, told), make_schedule(), clean, generator)
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert noise.shape == SHAPE and loss.requires_grad
    torch.testing.assert_close(loss, (noise - drawn).square().mean())


def falls_to_nothing():
    """What is left of the signal falls from nearly all to nearly none."""
    for name in SCHEDULES:
        left = make_schedule(name, 1000).alphas_cumprod
        assert left[0] > 0.99 and left[-1] < 0.01 and (left.diff() < 0).all(), name


def first_and_last_beta():
    """The linear schedule's ends are those that are asked for."""
    betas = make_schedule("linear", 50, 0.002, 0.03).betas
    torch.testing.assert_close(betas[[0, -1]], torch.tensor([0.002, 0.03]).to(betas))
    recipe = "schedule: linear, beta_start: 0.002, beta_end: 0.03"
    torch.testing.assert_close(policy(recipe).schedule.betas[-1].item(), 0.03)


def training_steps():
    """As many rows as steps, and no more can be visited."""
    assert make_schedule(num_train_timesteps=37).num_train_timesteps == 37
    assert policy("num_train_timesteps: 30").schedule.num_train_timesteps == 30


def tables(name):
    """What follows from the betas."""
    schedule = make_schedule("linear", 100)
    betas = schedule.betas
    left = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1).to(left), left[:-1]])
    wanted = {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": left,
        "sqrt_alphas_cumprod": left.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - left).sqrt(),
        "sqrt_recip_alphas": (1 - betas).rsqrt(),
        "posterior_variance": betas * (1 - before) / (1 - left),
    }
    torch.testing.assert_close(getattr(schedule, name), wanted[name])


def noise_is_mixed_in():
    """A share of signal, the rest noise; and the same as one step after the other."""
    schedule, clean, noise = make_schedule(), randn(*SHAPE), randn(*SHAPE, seed=1)
    steps = torch.tensor([0, 99])
    left = schedule.alphas_cumprod[steps].view(-1, 1, 1).float()
    wanted = left.sqrt() * clean + (1 - left).sqrt() * noise
    torch.testing.assert_close(add_noise(schedule, clean, noise, steps), wanted)


def perfect(clean, schedule):
    """A denoiser that knows the answer."""

    def epsilon(noisy, step):
        left = schedule.alphas_cumprod[step].view(-1, 1, 1).to(noisy)
        return (noisy - left.sqrt() * clean) / (1 - left).sqrt()

    return epsilon


def walks_back():
    """With a perfect denoiser every sampler ends at the clean sample."""
    schedule, clean = make_schedule(), 0.5 * randn(*SHAPE).clamp(-1.9, 1.9)
    for name, sampler in SAMPLERS.items():
        visited = inference_timesteps(100, 10)
        draw = noise_source(torch.Generator().manual_seed(0))
        found = sampler(perfect(clean, schedule), schedule, randn(*SHAPE), visited, draw=draw)
        torch.testing.assert_close(found, clean, atol=2e-3, rtol=0, msg=name)


def one_step_back():
    """One step after the other is the whole way."""
    schedule, net = make_schedule(), mlp()
    visited = inference_timesteps(100, 7)
    told = Condition(randn(2, 5))

    def source():
        return noise_source(torch.Generator().manual_seed(3))

    with torch.no_grad():
        whole = ddpm(lambda x, t: net(x, t, told), schedule, randn(*SHAPE), visited, draw=source())
        sample, draw = randn(*SHAPE), source()
        for now, then in zip(visited, [*visited[1:], None], strict=True):
            output = net(sample, torch.full((2,), now), told)
            sample = ddpm_step(output, schedule, sample, now, then, draw=draw)
    torch.testing.assert_close(sample, whole)


def variance():
    """The larger one leaves more spread on the way."""
    spreads = []
    for name in ("fixed_small", "fixed_large"):
        draw = noise_source(torch.Generator().manual_seed(0))
        zero = torch.zeros(4000, 1, 1)
        how = {"draw": draw, "variance": name, "clip": None}
        spreads.append(ddpm_step(zero, make_schedule(), zero, 60, 40, **how).std())
    assert spreads[1] > 1.05 * spreads[0]
    assert policy("sampler: ddpm, variance: fixed_large").recipe.policy.variance == "fixed_large"


def targets():
    """Noise and clean sample are two views of one answer."""
    for name in ("epsilon", "sample", "v"):
        made = policy(f"prediction_type: {name}")
        assert made.loss(batch_of(made), torch.Generator().manual_seed(0)) > 0


def visited_steps():
    """Falling, within the training's, as many as asked for."""
    visited = inference_timesteps(1000, 8)
    assert len(visited) == 8 and visited[0] == 999 and visited == sorted(visited, reverse=True)


def values_of_a_chunk():
    """H times Da."""
    recipe = Recipe.from_text("policy: {horizon: 16}")
    assert output_size(recipe, STATE) == 16 * 7 == chunk(policy())[0].numel()


def counts_parameters():
    """Of every part."""
    net = mlp()
    assert param_count(net) == sum(p.numel() for p in net.parameters()) > 100


def preset(name):
    """It loads, and a policy can be made of it and sampled."""
    recipe = Recipe.load(name, {"policy.denoiser": "{down_dims: [8, 16], n_groups: 4}"})
    made = DiffusionPolicy(recipe, STATE)
    assert chunk(made).isfinite().all()


def few_steps():
    """The fast preset asks the network less often."""
    fast, usual = (Recipe.load(name).policy for name in ("fast_inference", "recommended"))
    assert fast.num_inference_steps < usual.num_inference_steps


def published():
    """As many steps of inference as of training."""
    settings = Recipe.load("can_image_unet").policy
    assert settings.num_inference_steps == settings.num_train_timesteps


def idle():
    """Frames of rest before the first motion are found."""
    from diffusion_policy_ros.data.idle import idle_ends

    still, go = np.zeros((40, 3), np.float32), np.linspace(0, 1, 20, dtype=np.float32)
    moving = still.copy()
    moving[10:30, 0], moving[30:, 0] = go, 1.0
    states = {"robot0_eef_pos": moving, "robot0_eef_quat": np.tile([0, 0, 0, 1.0], (40, 1))}
    states |= {"robot0_gripper_qpos": np.zeros((40, 2))}
    actions = np.zeros((40, 7), np.float32)
    actions[10:30, 0] = 0.05
    found = idle_ends(STATE, states, actions)
    assert 0 < found.start <= 10 and 0 < found.end <= 10


def plan_is_seen():
    """A chunk becomes a path that begins where the arm is."""
    import pytest

    pytest.importorskip("nav_msgs", reason="needs ROS's messages")
    from diffusion_policy_ros.ros.planned_path import path_msg
    from diffusion_policy_ros.runtime.tail import Chunk

    actions = np.tile([0.01, 0, 0, 0, 0, 0, -1.0], (4, 1))
    where = {"robot0_eef_pos": np.array([0.1, 0.0, 0.2]), "robot0_eef_quat": np.eye(4)[3]}
    path = path_msg(Chunk(10**9, actions, 50_000_000), STATE, where)
    places = [pose.pose.position.x for pose in path.poses]
    np.testing.assert_allclose(places, 0.1 + 0.01 * np.arange(5), atol=1e-9)


def imports_robomimic():
    """A file's demonstrations become a dataset's episodes."""
    import pytest

    h5py = pytest.importorskip("h5py", reason="needs h5py: pip install -e '.[robomimic]'")
    from diffusion_policy_ros.data.formats.robomimic import import_robomimic

    contract, random = Contract.load("robomimic_square_lowdim"), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(Path(folder) / "square.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["env_args"] = '{"env_kwargs": {"controller_configs": {}}}'
            demo = data.create_group("demo_0")
            demo["actions"] = random.uniform(-1, 1, (6, 7))
            for key, stream in contract.observations.items():
                values = random.uniform(0.1, 0.5, (6, *stream.shape))
                if stream.shape == (4,):
                    values /= np.linalg.norm(values, axis=1, keepdims=True)
                demo[f"obs/{key}"] = values
        report = import_robomimic(Path(folder) / "square.hdf5", contract, Path(folder) / "out")
    assert (report.episodes, report.frames) == (1, 6)


def images_are_seen():
    """Pictures (84, 84, 3) and vectors become one chunk of actions."""
    made = policy(contract="mini_lift", denoiser=SMALL_EYES)
    assert made.contract.observations["agentview_image"].shape == (84, 84, 3)
    assert chunk(made).shape == (2, 16, 7)


def unet(**how):
    """A small U-Net."""
    torch.manual_seed(0)
    sizes = Sizes(7, 16, **{"global_cond": 5, **how})
    return UNet1D(sizes, UNet1DSettings(down_dims=(8, 16), kernel_size=3, n_groups=4))


def unet_answers():
    """Of the sample's shape, and depending on step and condition."""
    net, noisy, told = unet(), randn(*SHAPE), Condition(randn(2, 5))
    found = net(noisy, torch.tensor([3, 3]), told)
    assert found.shape == SHAPE
    assert not torch.allclose(found, net(noisy, torch.tensor([90, 90]), told))


def residual_block():
    """Channels change, the length stays, and the condition counts."""
    block = ResidualBlock(4, 8, 5, UNet1DSettings(n_groups=4, kernel_size=3))
    sample = randn(2, 4, 16)
    one, other = (block(sample, randn(2, 5, seed=s)) for s in (1, 2))
    assert one.shape == (2, 8, 16) and not torch.allclose(one, other)


def level_resizes():
    """It gives what its blocks give, and that resized."""
    settings = UNet1DSettings(n_groups=4, kernel_size=3)
    blocks = ResidualBlock(4, 8, 5, settings), ResidualBlock(8, 8, 5, settings)
    level = Level(*blocks, torch.nn.AvgPool1d(2))
    whole, half = level(randn(2, 4, 16), randn(2, 5))
    assert (whole.shape, half.shape) == ((2, 8, 16), (2, 8, 8))


def told_by(conditioning, part, denoiser=TINY_UNET):
    """That part of the condition is there, and the answer depends on it."""
    made = policy(f"conditioning: {conditioning}", denoiser)
    found = condition_of(made)
    assert getattr(found, part) is not None
    one, other = (made.sample(window(made, seed=s), noise=None,
                  generator=torch.Generator().manual_seed(0)) for s in (1, 2))  # fmt: skip
    assert not torch.allclose(one, other)


TINY_TRANSFORMER = "denoiser: {name: transformer, n_layer: 1, n_head: 2, n_emb: 8}"


def conditionings():
    """Each way of telling gives actions of the same shape."""
    for how, denoiser in (
        ("global", TINY_UNET),
        ("local", TINY_UNET),
        ("inpainting", TINY_UNET),
        ("tokens", TINY_TRANSFORMER),
    ):
        assert chunk(policy(f"conditioning: {how}", denoiser)).shape == (2, 16, 7)


def masks():
    """Observations of the observed steps are given, actions are not."""
    given = MaskGenerator(action_dim=7, obs_dim=3)(2, 16)
    assert given.shape == (2, 16, 10)
    assert not given[..., :7].any() and given[:, :2, 7:].all() and not given[:, 2:].any()


def normalizes():
    """Into [-1, 1] and back."""
    normalizer = policy().normalizer
    assert isinstance(normalizer, Normalizer)
    low, high = -2 * np.ones(7, np.float32), 3 * np.ones(7, np.float32)
    made = DiffusionPolicy(Recipe.from_text(f"policy: {{{TINY_MLP}}}"), STATE)
    statistics = {
        key: {"min": -np.ones(s.shape, np.float32), "max": np.ones(s.shape, np.float32)}
        for key, s in STATE.observations.items()
    }
    made.normalizer.fit({**statistics, "action": {"min": low, "max": high}})
    there = made.normalizer["action"].normalize(torch.from_numpy(np.stack([low, high])))
    torch.testing.assert_close(there, torch.tensor([-1.0, 1.0])[:, None].expand(2, 7))
    back = made.normalizer["action"].unnormalize(there)
    np.testing.assert_allclose(back.numpy(), np.stack([low, high]), atol=1e-6)


def padding_does_not_count():
    """What is padding has no error."""
    error, is_pad = randn(2, 4, 3).square(), torch.tensor([[False, False, True, True]] * 2)
    torch.testing.assert_close(masked_mean(error, is_pad), error[:, :2].mean())


def keypoints_move():
    """A bright spot's place is where its key point is."""
    maps = torch.zeros(1, 1, 9, 9)
    maps[0, 0, 2, 6] = 50.0
    torch.testing.assert_close(SpatialSoftmax(9, 9)(maps)[0], torch.tensor([0.5, -0.5]))


def features_of_a_camera(name):
    """As many numbers as the recipe says."""
    made = policy(contract="mini_lift", denoiser=SMALL_EYES)
    cameras = [made.encoder.cameras[key] for key in made.encoder.cameras]
    assert all(camera(torch.zeros(2, 2, 84, 84, 3, dtype=torch.uint8), None).shape[-1] == 6
               for camera in cameras), name  # fmt: skip


def resnet_sees():
    """A thirty-second of the picture's sides."""
    torch.manual_seed(0)
    found = resnet("resnet18", 3)(randn(1, 3, 64, 64))
    assert found.shape == (1, 512, 2, 2)


def transformer_of(**how):
    """A small Transformer."""
    torch.manual_seed(0)
    usual = {"n_layer": 1, "n_head": 2, "n_emb": 8, "p_drop_attn": 0.0}
    return Transformer(Sizes(7, 16, tokens=2, token_dim=5), TransformerSettings(**usual | how))


def transformer_answers():
    """Of the sample's shape, and depending on the tokens."""
    net, noisy, step = transformer_of(), randn(*SHAPE), torch.tensor([1, 2])
    one, other = (net(noisy, step, Condition(tokens=randn(2, 2, 5, seed=s))) for s in (1, 2))
    assert one.shape == SHAPE and not torch.allclose(one, other)


def transformer_grows(name):
    """More of it are more weights."""
    few, many = (param_count(transformer_of(**{name: n})) for n in (4, 8))
    assert many > few


def heads():
    """They share the width: none too many."""
    assert transformer_of(n_head=4)(randn(*SHAPE), torch.tensor([1, 2]),
                                    Condition(tokens=randn(2, 2, 5))).shape == SHAPE  # fmt: skip


def drops_attention():
    """In training, and never after."""
    net = transformer_of(p_drop_attn=0.5)
    told = Condition(tokens=randn(2, 2, 5))

    def answer():
        return net(randn(*SHAPE), torch.tensor([1, 2]), told)

    net.eval()
    assert torch.equal(answer(), answer())
    net.train()
    assert not torch.equal(answer(), answer())


def generator():
    """Noise is from nowhere else."""
    samples_chunks()


def official(name, file):
    """The reference's weights under its own names give the reference's output."""
    from diffusion_policy_ros.interop import official as room

    arrays = np.load(ROOT / "test" / "golden" / f"official_{file}.npz")
    parts = {head: {} for head in ("state", "in", "out", "config")}
    for key in arrays.files:
        head, _, tail = key.partition("/")
        if tail:
            parts[head][tail] = torch.from_numpy(arrays[key])
    net = getattr(room, f"build_{name}")(json.loads(str(arrays["config"])), parts["state"])
    with torch.inference_mode():
        found = net(**parts["in"])
    torch.testing.assert_close(found, torch.from_numpy(arrays["out"]), rtol=1e-4, atol=1e-5)


def device():
    """A CPU is always there."""
    assert pick_device("cpu").type == "cpu"


def saved_and_loaded():
    """A policy that was saved answers as before."""
    made = policy()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_policy(save_checkpoint(Path(folder) / "one", made))
    assert torch.equal(chunk(made), chunk(loaded))


def guided():
    """The null is learned, and guidance scales the difference that the observation makes."""
    made = policy("condition_dropout: 0.2")
    assert sum(p.numel() for p in made.null.values()) > 0
    assert not torch.allclose(chunk(made), chunk(made, guidance=3.0))


# ------------------------------------------------------------------------------------- example


@functools.cache
def example():
    """The tutorial's script as a module."""
    path = ROOT / "examples" / "point_navigation.py"
    spec = importlib.util.spec_from_file_location("navigation_of_the_map", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def lines(name, more):
    """Lines from a start to a target, and what the name says of them."""
    module = example()
    observations, paths = module.noisy_lines(50, torch.Generator().manual_seed(0))
    assert paths.shape == (50, module.POINTS, 2), name
    assert module.misses(paths, observations).max() < 6 * module.WOBBLE
    assert more(module)


@functools.cache
def navigated():
    """The figures and the pictures of a run that is over soon."""
    with tempfile.TemporaryDirectory() as folder:
        found = example().main(["--out", folder, "--updates", "80", "--steps", "12"])
        return found, sorted(path.name for path in Path(folder).iterdir())


def learns(picture=""):
    """Paths begin to go where they should, and the picture is there."""
    found, pictures = navigated()
    assert found["miss"] < 0.6
    assert not picture or picture in pictures


def flagged(words):
    """An experiment: its figures are finite, and those that only it has are there."""
    flags = [*words.split(), "--updates", "8"]
    flags += [] if "--steps" in flags else ["--steps", "4"]
    with tempfile.TemporaryDirectory() as folder:
        found = example().main(["--out", folder, *flags])
    assert all(np.isfinite(value) for value in found.values()) and found["miss"] < 2.0
    own = {"--obstacle": "of_one_bits", "--velocity": "inconsistency", "--variable": "end_miss"}
    assert all(name in found for flag, name in own.items() if flag in words)


def changed(entry):
    """A default of the script's that an experiment's flag changes."""
    usual = example().Experiment()
    assert dataclasses.replace(usual, updates=1) != usual, entry


P, C = "diffusion_policy_ros.policy", "diffusion_policy_ros.contract.Contract"
RECIPE, UNET = f"{P}.recipe.PolicySettings", f"{P}.denoisers.unet1d"
SCHEDULE, FORMER = f"{P}.schedules", f"{P}.denoisers.transformer"
NAVIGATION = "examples/point_navigation.py"
TABLES = ("betas", "alphas", "alphas_cumprod", "sqrt_alphas_cumprod",
          "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas", "posterior_variance")  # fmt: skip
PROPERTIES = {
    f"{P}.diffusion_policy.DiffusionPolicy": samples_chunks,
    f"{P}.diffusion_policy.DiffusionPolicy.loss": trains,
    f"{P}.diffusion_policy.DiffusionPolicy.sample": samples_chunks,
    f"{P}.diffusion_policy.DiffusionPolicy.sample(generator)": generator,
    f"{P}.denoisers.condition.Sizes.global_cond": wants_condition,
    f"{P}.denoisers.condition.Sizes.local_cond": lambda: told_by("local", "local_cond"),
    f"{P}.denoisers.condition.Condition": wants_condition,
    f"{P}.denoisers.condition.Condition.global_cond": lambda: told_by("global", "global_cond"),
    f"{P}.denoisers.condition.Condition.local_cond": lambda: told_by("local", "local_cond"),
    f"{P}.denoisers.condition.Condition.tokens": lambda: told_by(
        "tokens", "tokens", TINY_TRANSFORMER
    ),
    f"{P}.denoisers.condition.Condition.given": lambda: told_by("inpainting", "given"),
    f"{C}.action_dim": lambda: actions_of("action_dim"),
    f"{C}.observations": images_are_seen,
    "diffusion_policy_ros.contract.Stream.shape": images_are_seen,
    f"{RECIPE}.n_action_steps": executed_actions,
    f"{RECIPE}.horizon": horizon,
    f"{RECIPE}.n_obs_steps": observed_frames,
    f"{RECIPE}.pred_action_steps_only": predicted_alone,
    f"{RECIPE}.conditioning": conditionings,
    f"{RECIPE}.condition_dropout": guided,
    f"{RECIPE}.num_train_timesteps": training_steps,
    f"{RECIPE}.beta_start": first_and_last_beta,
    f"{RECIPE}.beta_end": first_and_last_beta,
    f"{RECIPE}.variance": variance,
    f"{RECIPE}.prediction_type": targets,
    f"{P}.denoisers.mlp.MLP": wants_condition,
    f"{P}.denoisers.mlp.MLPSettings.hidden_size": lambda: grows("hidden_size"),
    f"{P}.denoisers.mlp.MLPSettings.num_layers": lambda: grows("num_layers"),
    f"{P}.denoisers.mlp.MLPSettings.diffusion_step_embed_dim": step_embedding_sizes,
    f"{UNET}.SinusoidalEmbedding": step_embedding,
    f"{UNET}.UNet1D": unet_answers,
    f"{UNET}.ResidualBlock": residual_block,
    f"{UNET}.Level": level_resizes,
    f"{FORMER}.Transformer": transformer_answers,
    f"{FORMER}.TransformerSettings.n_cond_layers": lambda: transformer_grows("n_cond_layers"),
    f"{FORMER}.TransformerSettings.n_layer": lambda: transformer_grows("n_layer"),
    f"{FORMER}.TransformerSettings.n_head": heads,
    f"{FORMER}.TransformerSettings.n_emb": lambda: transformer_grows("n_emb"),
    f"{FORMER}.TransformerSettings.p_drop_attn": drops_attention,
    f"{P}.eyes.ObservationEncoder": encodes_frames,
    f"{P}.eyes.TemporalEncoder": lambda: temporal("gru"),
    f"{P}.eyes.TemporalEncoderSettings.name": lambda: temporal("mlp"),
    f"{P}.eyes.SpatialSoftmax": keypoints_move,
    f"{P}.eyes.ImageEncoderSettings.keypoints": lambda: features_of_a_camera("keypoints"),
    f"{P}.eyes.ImageEncoderSettings.features": lambda: features_of_a_camera("features"),
    f"{P}.backbones.resnet": resnet_sees,
    f"{P}.objective.diffusion_loss": perfect_is_no_loss,
    f"{P}.objective.training_step": loss_and_prediction,
    f"{P}.objective.masked_mean": padding_does_not_count,
    f"{SCHEDULE}.make_schedule": falls_to_nothing,
    f"{SCHEDULE}.make_schedule(name)": falls_to_nothing,
    f"{SCHEDULE}.make_schedule(beta_start)": first_and_last_beta,
    f"{SCHEDULE}.make_schedule(beta_end)": first_and_last_beta,
    f"{SCHEDULE}.make_schedule(num_train_timesteps)": training_steps,
    **{f"{SCHEDULE}.NoiseSchedule.{name}": functools.partial(tables, name) for name in TABLES},
    f"{SCHEDULE}.add_noise": noise_is_mixed_in,
    f"{SCHEDULE}.SCHEDULES": falls_to_nothing,
    f"{P}.samplers.ddpm": walks_back,
    f"{P}.samplers.ddpm_step": one_step_back,
    f"{P}.samplers.inference_timesteps": visited_steps,
    f"{P}.samplers.SAMPLERS": walks_back,
    f"{P}.sizes.output_size": values_of_a_chunk,
    f"{P}.sizes.param_count": counts_parameters,
    f"{P}.inpainting.MaskGenerator": masks,
    f"{P}.normalizer.Normalizer": normalizes,
    f"{P}.devices.pick_device": device,
    f"{P}.checkpoint.save_checkpoint": saved_and_loaded,
    f"{P}.checkpoint.load_policy": saved_and_loaded,
    "recommended: name": lambda: preset("recommended"),
    "fast_inference: name": lambda: preset("fast_inference"),
    "fast_inference: policy.num_inference_steps": few_steps,
    "can_image_unet: policy.num_inference_steps": published,
    "diffusion_policy_ros.data.idle.idle_ends": idle,
    "diffusion_policy_ros.ros.planned_path": plan_is_seen,
    "diffusion_policy_ros.data.formats.robomimic.import_robomimic": imports_robomimic,
    "diffusion_policy_ros.interop.official.build_unet1d": lambda: official(
        "unet1d", "unet1d_unconditioned_two_levels"
    ),
    "diffusion_policy_ros.interop.official.build_transformer": lambda: official(
        "transformer", "transformer_encoder_only"
    ),
    f"{NAVIGATION}: noisy_lines": lambda: lines("noisy_lines", lambda m: True),
    f"{NAVIGATION}: LINES": lambda: lines("LINES", lambda m: m.LINES == 10_000),
    f"{NAVIGATION}: POINTS": lambda: lines("POINTS", lambda m: m.Experiment().length == m.POINTS),
    f"{NAVIGATION}: WOBBLE": lambda: lines(
        "WOBBLE", lambda m: m.Experiment().points_noise == m.WOBBLE
    ),
    f"{NAVIGATION}: BATCH": learns,
    f"{NAVIGATION}: LEARNING_RATE": learns,
    f"{NAVIGATION}: UPDATES": learns,
    f"{NAVIGATION}: STEPS": learns,
    f"{NAVIGATION}: make_denoiser": learns,
    f"{NAVIGATION}: train": learns,
    f"{NAVIGATION}: navigate": learns,
    f"{NAVIGATION}: draw_paths": lambda: learns("paths.png"),
    f"{NAVIGATION}: animate": lambda: learns("denoising.gif"),
}


def property_of(entry):
    """What an entry is to do; flags of the script are run as they stand."""
    script, _, flags = entry.partition(" ")
    if script == NAVIGATION and flags:
        return functools.partial(flagged, flags)
    return PROPERTIES[entry]
