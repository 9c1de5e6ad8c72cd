"""A folder with what the machine with the card needs, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TRAVELS = (
    "diffusion_policy_ros",
    "config",
    "scripts",
    "benchmark",
    "test",
    "pyproject.toml",
    "package.xml",
)
WHEELS = ("pyyaml", "scipy", "pillow")
LEFT_OUT = ("__pycache__", "data_files", "*.mcap")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")


def copy(root: Path, folder: Path) -> None:
    """Copy TRAVELS into a new folder.

    Raises:
        FileExistsError: it is there already.
    """
    folder.mkdir(parents=True)
    for name in TRAVELS:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copy(root / name, folder / name)


def unpack_wheels(packages: Path, python: str) -> None:
    """Fetch WHEELS for that Python and unpack them into `packages`.

    Raises:
        CalledProcessError: pip finds no such wheel.
    """
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--python-version", python, "--dest", downloads]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        subprocess.run([*command, *WHEELS], check=True)
        for wheel in Path(downloads).glob("*.whl"):
            with zipfile.ZipFile(wheel) as content:
                content.extractall(packages)
