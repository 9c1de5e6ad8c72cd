"""Networks against the numbers of the reference implementation's own."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.official import build_transformer, build_unet1d

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = sorted(GOLDEN.glob("official_unet1d_*.npz")) + sorted(
    GOLDEN.glob("official_transformer_*.npz")
)


def golden(name):
    """Builder, config, weights, inputs and output of one reference network."""
    path = GOLDEN / f"official_{name}.npz"
    arrays, parts = np.load(path), {"state": {}, "in": {}}
    for key in arrays.files:
        head, _, tail = key.partition("/")
        if tail:
            parts[head][tail] = torch.from_numpy(arrays[key])
    config = json.loads(str(arrays["config"]))
    build = build_unet1d if name.startswith("unet1d") else build_transformer
    return build, config, parts["state"], parts["in"], torch.from_numpy(arrays["out"])


@pytest.mark.parametrize("name", [p.stem.removeprefix("official_") for p in NETWORKS])
def test_equals_the_reference_network(name):
    """The reference's weights in our network give its output within 1e-5 relative."""
    build, config, state, inputs, expected = golden(name)
    with torch.inference_mode():
        out = build(config, state)(**inputs)
    assert (out - expected).norm() / expected.norm() < 1e-5
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_all_golden_networks_are_tested():
    """Five of each kind."""
    assert len(NETWORKS) == 10


@pytest.mark.parametrize("name", ["unet1d_global_cond", "transformer_causal_mlp_condition"])
def test_a_scalar_step_is_every_entry_s_step(name):
    """One number may stand for the whole batch; it is cut to a whole one, as there."""
    build, config, state, inputs, _ = golden(name)
    net, inputs = build(config, state), {k: v for k, v in inputs.items() if k != "timestep"}
    with torch.inference_mode():
        each = net(timestep=torch.full((3,), 7), **inputs)
        for one in (7, 7.9, torch.tensor(7), torch.tensor([7])):
            assert torch.equal(net(timestep=one, **inputs), each)


def test_the_second_local_feature_takes_no_part():
    """The reference never adds it; its weights are asked for all the same, and not lost."""
    build, config, state, inputs, expected = golden("unet1d_local_cond")
    unused = "local_cond_encoder.1.blocks.0.block.0.weight"
    net = build(config, {**state, unused: state[unused] + 1.0})
    with torch.inference_mode():
        torch.testing.assert_close(net(**inputs), expected, rtol=1e-4, atol=1e-5)
    kept = net.state_dict()["unused.first.conv.weight"]
    assert torch.equal(kept, state[unused] + 1.0)
    with pytest.raises(UserError, match="unused.first.conv.weight"):
        build(config, {name: value for name, value in state.items() if name != unused})


def test_the_local_condition_may_be_left_out_as_there():
    """Then no local feature is added."""
    build, config, state, inputs, expected = golden("unet1d_local_cond")
    with torch.inference_mode():
        out = build(config, state)(inputs["sample"], inputs["timestep"])
    assert out.shape == expected.shape
    assert not torch.allclose(out, expected, atol=1e-3)


@functools.cache
def variations():
    """Tiny reference networks in many configurations, with arguments left at their defaults."""
    arrays, found = np.load(GOLDEN / "official_variations.npz"), {}
    for key in arrays.files:
        number, _, rest = key.partition("/")
        found.setdefault(number, {})[rest] = arrays[key]
    return found


@pytest.mark.parametrize("number", sorted(variations()))
def test_other_configurations_equal_the_reference_too(number):
    """Levels, kernels, groups, conditions, masks, encoders, other output sizes: all of them."""
    arrays = variations()[number]
    config = json.loads(str(arrays["config"]))
    tensors = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "config"}
    state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
    inputs = {k.removeprefix("in/"): v for k, v in tensors.items() if k.startswith("in/")}
    build = build_unet1d if "down_dims" in config else build_transformer
    with torch.inference_mode():
        out = build(config, state)(**inputs)
    assert (out - tensors["out"]).norm() / tensors["out"].norm() < 1e-5


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("unet1d_global_cond", {"down_dim": [8]}, "'down_dim'.*did you mean 'down_dims'"),
        ("unet1d_global_cond", {"kernel_size": 4}, "kernel_size: 4 is even; use 3 or 5"),
        ("unet1d_global_cond", {"n_groups": 7}, "down_dims: 32 channels.*multiples of n_groups"),
        (
            "unet1d_global_cond",
            {"n_groups": 4, "down_dims": [12, 16]},
            "final_n_groups: 8 groups do not divide 12",
        ),
        ("unet1d_global_cond", {"global_cond_dim": None}, "weights do not fit"),
        ("transformer_full_attention", {"n_heads": 4}, "'n_heads'.*did you mean 'n_head'"),
        ("transformer_full_attention", {"n_head": 5}, "n_emb: 32 is not divided by the heads"),
        ("transformer_full_attention", {"time_as_cond": False}, "time_as_cond.*use true"),
        ("transformer_full_attention", {"causal_attn": True}, "'mask' is not the one of causal"),
        ("transformer_causal_mlp_condition", {"causal_attn": False}, "'mask' is not the one"),
        ("transformer_causal_mlp_condition", {"n_layer": 1}, "weights do not fit"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(name, change, message):
    """Unknown ones, impossible ones, and those that the weights were not made with."""
    build, config, state, *_ = golden(name)
    with pytest.raises(UserError, match=message):
        build({**config, **change}, state)


@pytest.mark.parametrize("name", ["unet1d_global_cond", "transformer_causal_encoder_condition"])
def test_weights_are_loaded_strictly(name):
    """A tensor that is missing, left over, or there under two names is an error."""
    build, config, state, *_ = golden(name)
    key = next(key for key in state if key.endswith("bias"))
    with pytest.raises(UserError, match="weights do not fit: .*Missing"):
        build(config, {k: v for k, v in state.items() if k != key})
    with pytest.raises(UserError, match="weights do not fit: .*Unexpected.*surplus"):
        build(config, {**state, "surplus": torch.zeros(1)})
    with pytest.raises(UserError, match="no input_dim"):
        build({k: v for k, v in config.items() if k != "input_dim"}, state)


def test_horizons_that_the_unet_cannot_halve_name_the_nearest():
    """The reference fails in a convolution; here it is said what would do."""
    build, config, state, inputs, _ = golden("unet1d_global_cond")
    with pytest.raises(UserError, match="horizon: 15 steps.*use 12 or 16"):
        build(config, state)(inputs["sample"][:, :15], 3, global_cond=inputs["global_cond"])
