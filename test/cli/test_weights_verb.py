"""`diffusion-policy weights`: which file, from where, with which hash; nothing is downloaded."""

import torch

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.policy.backbones import resnet
from diffusion_policy_ros.policy.checkpoint import sha256


def test_it_names_files_places_hashes_and_the_recipe_s_lines(capsys):
    """For each ResNet, with ImageNet's mean and deviation."""
    assert main(["weights"]) == 0
    out = capsys.readouterr().out
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth  SHA-256 f37072fd" in out
    assert "resnet50-11ad3fa6.pth" in out
    assert "weights: FOLDER/resnet34-b627a593.pth, mean: [0.485, 0.456, 0.406], std: [0.229" in out


def test_a_file_is_checked(capsys, tmp_path):
    """What fits is counted and hashed; what does not is one line."""
    path = tmp_path / "own.pth"
    torch.save(resnet("resnet18", 3).state_dict(), path)
    assert main(["weights", "resnet18", str(path)]) == 0
    assert f"60 tensors fit, SHA-256 {sha256(path)}" in capsys.readouterr().out
    assert main(["weights", "resnet34", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["weights", "resnet19"]) == 2
    assert "did you mean 'resnet18'" in capsys.readouterr().err
