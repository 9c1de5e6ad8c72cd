"""The package as pip, colcon and ROS see it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import diffusion_policy_ros

ROOT = Path(__file__).resolve().parents[2]
NAME = "diffusion_policy_ros"
COMMANDS = ("diffusion-policy", "policy_node", "episode_recorder", "sim_robot", "action_player")
BUILD_INPUT = ("package.xml", "setup.py", "setup.cfg", "pyproject.toml")
BUILD_FOLDERS = (NAME, "resource", "launch", "config")
needs_colcon = pytest.mark.skipif(
    importlib.util.find_spec("colcon_ros") is None, reason="needs colcon: pip install -e '.[test]'"
)


def manifest() -> ElementTree.Element:
    """Return the root element of package.xml."""
    return ElementTree.parse(ROOT / "package.xml").getroot()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Make a colcon workspace with a copy of this package."""
    root = tmp_path_factory.mktemp("workspace")
    source = root / "src" / NAME
    source.mkdir(parents=True)
    for name in BUILD_INPUT:
        shutil.copy(ROOT / name, source)
    for name in BUILD_FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    return root


def colcon(workspace: Path, *arguments: str) -> str:
    """Run colcon in the workspace and return its output."""
    command = [sys.executable, "-m", "colcon", "--log-base", "log", *arguments]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(workspace) -> Path:
    """Build the workspace and return the package's prefix."""
    colcon(workspace, "build")
    return workspace / "install" / NAME


def test_versions_agree():
    """package.xml, setup.py and the module have one version; the changelog has it on top."""
    version = diffusion_policy_ros.__version__
    assert manifest().findtext("version") == version
    assert f'version="{version}"' in (ROOT / "setup.py").read_text()
    changelog = (ROOT / "CHANGELOG.rst").read_text()
    assert re.findall(r"^(Forthcoming|\d+\.\d+\.\d+.*)$", changelog, re.MULTILINE)[0] in (
        "Forthcoming",
        version,
    )


def test_the_manifest_is_format_3_and_ament_python():
    """Tools read what they need."""
    root = manifest()
    assert root.get("format") == "3"
    assert root.findtext("export/build_type") == "ament_python"
    assert root.find("test_depend") is not None
    assert root.findtext("license") == "Apache-2.0"


def test_every_message_package_is_in_the_manifest():
    """What the nodes import of ROS is an exec_depend."""
    depends = {element.text for element in manifest().iter("exec_depend")}
    found = set()
    for path in (ROOT / NAME / "ros").glob("*.py"):
        found |= set(
            re.findall(r"^(?:from|import) (\w+_(?:msgs|srvs|interfaces))", path.read_text(), re.M)
        )
    assert found <= depends


def test_every_folder_is_a_package():
    """An installation lacks folders without `__init__.py`: setuptools passes over them."""
    folders = {path.parent for path in (ROOT / NAME).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_pip_leaves_the_commands():
    """The installed distribution has the four commands, and their modules exist."""
    scripts = {
        entry.name: entry.value
        for entry in importlib.metadata.distribution(NAME).entry_points
        if entry.group == "console_scripts"
    }
    assert set(scripts) == set(COMMANDS)
    for name in COMMANDS:
        assert (Path(sys.executable).parent / name).is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_module(name):
    """An entry point leads to a module of this package."""
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    assert importlib.util.find_spec(entry.module) is not None


@needs_colcon
def test_colcon_takes_it_as_ament_python(workspace):
    """Colcon's own discovery identifies name and build type."""
    assert colcon(workspace, "list").split() == [NAME, f"src/{NAME}", "(ros.ament_python)"]


@needs_colcon
def test_colcon_installs_all_that_ros_looks_for(installed):
    """Executables for `ros2 run`, launch files, configuration, manifest and index."""
    for name in COMMANDS:
        assert (installed / "lib" / NAME / name).is_file()
    assert (installed / "share/ament_index/resource_index/packages" / NAME).is_file()
    share = installed / "share" / NAME
    assert (share / "package.xml").is_file()
    for folder in ("config", "launch"):
        source = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()}
        source = {path for path in source if "__pycache__" not in path.parts}
        assert source
        assert {path for path in source if not (share / path).is_file()} == set()


@needs_colcon
def test_the_installed_command_reads_the_installed_configuration(installed):
    """The executable runs with colcon's interpreter and finds what colcon installed."""
    (site_packages,) = installed.glob("lib/python*/site-packages")
    code = "from diffusion_policy_ros.shipped import share_folder; print(share_folder())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(site_packages), "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"},
        cwd=installed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(installed / "share" / NAME)
    head = (installed / "lib" / NAME / "policy_node").read_text().splitlines()[:2]
    assert any(str(Path(sys.executable).parent) in line for line in head)
