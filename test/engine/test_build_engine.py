"""Engines: built by name, equal to the policy."""

import numpy as np
import pytest
import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import ENGINES, build_engine, pick_device
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe


@pytest.fixture
def policy():
    """The demo's policy without cameras, untrained, with a network that is quick to convert."""
    small = {"policy.denoiser": "{name: mlp, hidden_size: 16, num_layers: 1}"}
    recipe = Recipe.load("mini_lift_state", small)
    return DiffusionPolicy(recipe, Contract.load("mini_lift_state")).eval()


@pytest.fixture
def window(policy):
    """One observation window, as the runtime has it."""
    random = np.random.default_rng(0)
    return {
        key: random.normal(size=(1, 2, *stream.shape)).astype(np.float32)
        for key, stream in policy.contract.observations.items()
    }


@pytest.mark.parametrize("name", [*ENGINES, "auto"])
def test_every_engine_samples_what_the_policy_samples(policy, window, name):
    """The same noise gives the same chunk within 1e-4 of the action's range."""
    noise = torch.randn(1, 16, policy.sizes.action_dim, generator=torch.Generator().manual_seed(0))
    if name == "openvino":
        pytest.importorskip(name, reason="needs openvino: pip install -e '.[openvino]'")
    expected = policy.sample(window, noise=noise, steps=5)
    engine = build_engine(policy, name)
    out = engine.sample(window, noise=noise, steps=5)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
    assert engine.name in ENGINES
    assert engine.device == torch.device("cpu")
    assert engine.policy.recipe == policy.recipe


def test_unknown_engines_devices_and_dtypes_are_refused(policy):
    """Each names what there is."""
    with pytest.raises(UserError, match="did you mean 'eager'"):
        build_engine(policy, "eagre")
    with pytest.raises(UserError, match="use auto or cpu"):
        build_engine(policy, device="warp9")
    with pytest.raises(UserError, match="computes in f32"):
        build_engine(policy, "eager", dtype="f16")
    with pytest.raises(UserError, match="-1 threads"):
        build_engine(policy, threads=-1)


def test_auto_is_the_gpu_when_there_is_one(monkeypatch):
    """And the CPU otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


def test_an_engine_for_the_cpu_is_there_although_there_is_a_gpu(policy, monkeypatch):
    """Who asks for it by name need not name the device as well."""
    there = {"auto": "cuda"}  # a machine that has one: torch itself must not believe it
    monkeypatch.setattr(
        "diffusion_policy_ros.engine.pick_device", lambda name: torch.device(there.get(name, name))
    )
    where = []
    monkeypatch.setitem(ENGINES, "openvino", lambda policy, device, *_: where.append(device))
    build_engine(policy, "openvino", "auto")
    assert where == [torch.device("cpu")]


def test_auto_goes_on_without_an_openvino_that_lacks_a_module(policy, monkeypatch):
    """And says so; asked for by name it is refused in a line."""

    def lacking(*_):
        raise ModuleNotFoundError("No module named 'packaging'")

    monkeypatch.setitem(ENGINES, "openvino", lacking)
    said = []
    assert build_engine(policy, "auto", "cpu", say=said.append).name == "eager"
    assert "engine auto takes eager" in said[0] and "'packaging'" in said[0]
    with pytest.raises(UserError, match="No module named 'packaging'"):
        build_engine(policy, "openvino")
