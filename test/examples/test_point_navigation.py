"""The tutorial's example runs, each of its experiments too, and learns something."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plot]'")

from diffusion_policy_ros.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    path = ROOT / "examples" / "point_navigation.py"
    spec = importlib.util.spec_from_file_location("point_navigation", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["point_navigation"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def quick(example, tmp_path, *flags, updates=60):
    """The figures of an experiment with a tiny budget."""
    words = ["--out", str(tmp_path), "--updates", str(updates), "--steps", "10"]
    return example.main([*words, *flags])


def test_the_demonstrations_are_noisy_lines(example):
    """From start to target, evenly, with a wobble of 2 cm in a square of 2 m."""
    observations, paths = example.noisy_lines(500, torch.Generator().manual_seed(0))
    assert (observations.shape, paths.shape) == ((500, 4), (500, 32, 2))
    start, target = observations.view(500, 2, 1, 2).unbind(1)
    line = start + torch.linspace(0, 1, 32)[:, None] * (target - start)
    assert (paths - line).std() == pytest.approx(0.02, rel=0.05)
    assert observations.abs().max() <= 1


def test_the_network_has_about_100_k_parameters(example):
    """132 * 256 + 256 * 256 + 256 * 64 weights, and their biases."""
    count = sum(p.numel() for p in example.make_denoiser().net.parameters())
    assert count == 132 * 256 + 256 + 256 * 256 + 256 + 256 * 64 + 64


def test_it_writes_its_pictures_and_learns(example, tmp_path):
    """In 60 updates paths begin to go where they should."""
    found = example.main(["--out", str(tmp_path), "--updates", "60"])
    assert found["miss"] < 0.6
    for name in ("noising.png", "loss.png", "paths.png", "denoising.gif"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
    with Image.open(tmp_path / "denoising.gif") as gif:
        assert gif.n_frames > 20


@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_other_targets_train_too(example, target):
    """The loss falls."""
    torch.manual_seed(0)
    what = example.Experiment(target=target, updates=40)
    generator = torch.Generator().manual_seed(0)
    schedule = example.make_schedule("squaredcos_cap_v2", example.STEPS)
    losses = example.train(example.make_denoiser(what), schedule, what, generator)
    assert losses[-1] < losses[0]


# ----------------------------------------------------------------------------- its experiments


def test_detours_pass_the_disc_half_on_each_side(example):
    """Every line would meet it, no path does; which side is not to be seen from the ends."""
    generator = torch.Generator().manual_seed(0)
    observations, paths = example.detours(1000, generator)
    start, target = observations.view(-1, 2, 1, 2).unbind(1)
    line = start + torch.linspace(0, 1, 200)[:, None] * (target - start)
    assert (line.norm(dim=-1).min(dim=1).values < example.OBSTACLE).all()
    passed = example.sides(paths, observations)
    assert (passed == 1).sum() == (passed == -1).sum() == 500
    ends = observations.view(-1, 4)
    assert (ends[passed == 1].mean(0) - ends[passed == -1].mean(0)).abs().max() < 0.1
    assert example.misses(paths, observations).max() < 0.06
    straight = observations.view(-1, 2, 2)[:, :1] + torch.linspace(0, 1, 32)[:, None] * (
        target - start
    )
    assert (example.sides(straight, observations) == 0).all()


def test_noise_finds_ways_round_and_regression_finds_none(example, tmp_path):
    """The mean of left and right goes through; draws of one observation go either way."""
    noisy = quick(example, tmp_path, "--obstacle", "--target", "sample", updates=250)
    mean = quick(example, tmp_path, "--obstacle", "--regression", updates=250)
    assert mean["valid"] < 0.05 and mean["of_one_valid"] == 0.0
    assert noisy["valid"] > 0.3 and noisy["of_one_bits"] > 0.5


def test_velocities_are_those_of_the_positions(example, tmp_path):
    """The way that velocities lead is the way between the ends."""
    fresh = example.demonstrations(
        example.Experiment(velocity=True, points_noise=0.0), 50, torch.Generator().manual_seed(0)
    )
    assert fresh.paths.shape == (50, 32, 4)
    assert example.inconsistency(fresh.paths) < 1e-5
    assert quick(example, tmp_path, "--velocity", updates=150)["inconsistency"] < 0.3


def test_paths_of_any_length_are_padded(example):
    """From 8 points on; the last one is at the target, and what follows repeats it."""
    what = example.Experiment(variable_length=True, points_noise=0.0)
    data = example.demonstrations(what, 300, torch.Generator().manual_seed(0))
    assert (data.lengths.min(), data.lengths.max()) == (8, 32)
    assert example.misses(data.paths, data.observations, data.lengths).max() < 1e-6
    for path, length in zip(data.paths[:20], data.lengths, strict=False):
        assert (path[length:] == path[length - 1]).all()


def test_guidance_hides_observations_behind_a_learned_null(example):
    """The null is trained; guidance of 1 is no guidance, and 0 does not look."""
    what = example.Experiment(guidance=1.0, updates=5)
    generator = torch.Generator().manual_seed(0)
    schedule = example.make_schedule("squaredcos_cap_v2", example.STEPS)
    net = example.make_denoiser(what)
    example.train(net, schedule, what, generator)
    assert net.null.abs().max() > 0
    noisy, step = torch.randn(3, 32, 2), torch.tensor([5, 50, 500])
    one, other = torch.rand(2, 3, 4)

    def asked(seen, scale):
        return example.denoiser_of(net, seen, scale)(noisy, step)

    torch.testing.assert_close(asked(one, 1.0), asked(one, None))
    torch.testing.assert_close(asked(one, 0.0), asked(other, 0.0))
    assert not torch.allclose(asked(one, 2.0), asked(one, 1.0))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "2000"], "--steps: 2000; give 1 to 1000"),
        (["--length", "4"], "--length: 4 is too few; give 8 or more"),
        (["--network", "unet1d", "--length", "17"], "--length"),
        (["--obstacle", "--velocity"], "drop a flag"),
        (["--regression", "--target", "v"], "use --target sample"),
    ],
)
def test_what_cannot_be_is_refused(example, tmp_path, flags, said):
    """One line."""
    with pytest.raises(UserError, match=said):
        example.main(["--out", str(tmp_path), *flags])
