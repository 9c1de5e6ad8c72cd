"""What may be imported, and by whom."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "diffusion_policy_ros"
TORCH_FREE = ("contract", "errors", "shipped", "strict_yaml", "observe", "sim", "cli")

# Import name -> name that pip and setup.py know, where they differ.
DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "Pillow", "gym_pusht": "gym-pusht", "rerun": "rerun-sdk"}
ROS_MESSAGES = re.compile(
    r"^(builtin_interfaces|rcl_interfaces|unique_identifier_msgs|\w+_(msgs|srvs))$"
)


def modules(*tops: str) -> list[str]:
    """List the package's modules below these names, or all."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return sorted(
        name for name in names if not tops or name.split(".")[1:2] in [[t] for t in tops]
    )


def imported(path: Path) -> set[str]:
    """Return the top names of everything that a file imports, at its top or within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def declared() -> set[str]:
    """Return the names of all distributions that setup.py asks for, in lower case."""
    strings = [
        node.value
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return {re.split(r"[<>=~\[]", text)[0].lower() for text in strings}


NEEDS = {
    "diffusion_policy_ros.sim.robosuite": "robosuite",
    "diffusion_policy_ros.sim.pusht": "gym_pusht",
}
"""Adapters of others' simulators → what has to be installed for them."""


def test_no_torch_where_none_is_needed():
    """Contract, observations, simulator and command line import without torch and without ROS."""
    names = [
        name
        for name in modules(*TORCH_FREE)
        if importlib.util.find_spec(NEEDS.get(name, "mujoco" if ".sim" in name else "sys"))
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'rclpy', 'diffusers'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_start_does_not_pay_for_what_it_may_need_later():
    """Torch's compiler takes half as long to import as torch itself; a node starts without it."""
    names = ["engine", "evaluation", "train.trainer"]
    code = (
        f"import sys, {', '.join(f'diffusion_policy_ros.{name}' for name in names)}\n"
        "print(*{'torch._dynamo', 'sympy', 'scipy', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("module", modules())
def test_every_import_is_declared(module):
    """What the package imports is in setup.py, so that a fresh environment has it."""
    path = ROOT.joinpath(*module.split("."))
    path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    third_party = imported(path) - set(sys.stdlib_module_names) - {"diffusion_policy_ros"}
    ros = {"rclpy", "launch", "launch_ros", "lifecycle_msgs"}
    unknown = {
        name
        for name in third_party - ros
        if not ROS_MESSAGES.match(name) and DISTRIBUTIONS.get(name, name).lower() not in declared()
    }
    assert unknown == set()


def test_no_pickle():
    """Nothing in the package reads or writes pickles."""
    users = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if imported(path) & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    ]
    assert users == []
