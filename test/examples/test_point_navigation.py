"""The tutorial's example runs, and learns something in a few updates."""

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plot]'")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example():
    """The script as a module."""
    path = ROOT / "examples" / "point_navigation.py"
    spec = importlib.util.spec_from_file_location("point_navigation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    count = sum(p.numel() for p in example.make_denoiser().parameters())
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
    generator = torch.Generator().manual_seed(0)
    schedule = example.make_schedule("squaredcos_cap_v2", example.STEPS)
    losses = example.train(example.make_denoiser(), schedule, target, 40, generator)
    assert losses[-1] < losses[0]
