"""Shipped files are found wherever the package was installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffusion_policy_ros import shipped
from diffusion_policy_ros.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def share_folder_of(site_packages: Path) -> str:
    """Return what a fresh interpreter finds that imports the package from this folder."""
    code = "from diffusion_policy_ros.shipped import share_folder; print(share_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(site_packages), "PATH": "", "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"},
        cwd=site_packages,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def install(site_packages: Path, share: Path) -> None:
    """Copy package and shipped files to where an installer puts them."""
    site_packages.mkdir(parents=True)
    package = site_packages / "diffusion_policy_ros"
    package.mkdir()
    for name in ("__init__.py", "errors.py", "shipped.py"):
        shutil.copy(ROOT / "diffusion_policy_ros" / name, package / name)
    (share / "config").mkdir(parents=True)
    shutil.copy(ROOT / "package.xml", share)


def test_the_source_tree_is_read_when_there_is_one():
    """An editable installation reads the files that are being edited."""
    assert shipped.share_folder() == ROOT


@pytest.mark.parametrize(
    "site_packages",
    [
        "lib/python3.11/site-packages",  # virtual environment, pip --user, colcon
        "local/lib/python3.12/dist-packages",  # Debian's and Ubuntu's Python
    ],
)
def test_an_installation_reads_its_own_share(site_packages, tmp_path):
    """The nearest `share` above the package is used, whatever the environment says."""
    share = tmp_path / "share" / "diffusion_policy_ros"
    install(tmp_path / site_packages, share)
    assert share_folder_of(tmp_path / site_packages) == str(share)


def test_a_symlinked_workspace_reads_the_source(tmp_path):
    """`colcon build --symlink-install` links the package; its source's files count."""
    install(tmp_path / "source", tmp_path / "source" / "unused")
    shutil.copy(ROOT / "package.xml", tmp_path / "source")
    (tmp_path / "source" / "config").mkdir()
    build = tmp_path / "build"
    build.mkdir()
    (build / "diffusion_policy_ros").symlink_to(tmp_path / "source" / "diffusion_policy_ros")
    assert share_folder_of(build) == str(tmp_path / "source")


def test_a_copied_package_tells_the_cure(tmp_path):
    """Without any shipped files the error says how to install."""
    install(tmp_path / "lib", tmp_path / "elsewhere")
    assert "install the package with pip or colcon" in share_folder_of(tmp_path / "lib")


def test_every_shipped_yaml_file_is_yaml():
    """Each listed contract and recipe exists and parses."""
    names = [
        (kind, name) for kind in ("contracts", "recipes") for name in shipped.config_names(kind)
    ]
    assert ("contracts", "mini_lift") in names
    for kind, name in names:
        assert isinstance(yaml.safe_load(shipped.config_path(kind, name).read_text()), dict)


def test_a_name_works_with_and_without_its_ending():
    """`mini_lift` and `mini_lift.yaml` are the same file."""
    path = shipped.config_path("contracts", "mini_lift")
    assert path == shipped.config_path("contracts", "mini_lift.yaml")
    assert path.is_file()


def test_an_unknown_shipped_file_suggests_the_near_one():
    """A misspelt file name is refused with the right one."""
    with pytest.raises(UserError, match="did you mean 'fastdds_large_images.xml'"):
        shipped.shipped_path("config/fastdds_large_image.xml")
