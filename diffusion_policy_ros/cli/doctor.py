"""`diffusion-policy doctor`: does all that the package needs work here, and if not, what to do.

Each line is `ok`, `warn` (something that some verbs need is missing) or `fail` (something is
broken), with its cure.
Whatever may crash or hang - DDS, OpenGL, another interpreter - runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from diffusion_policy_ros.shipped import shipped_path

Level = Literal["ok", "warn", "fail"]

CORE_LIBRARIES = ("numpy", "scipy", "pyyaml", "safetensors", "tqdm", "pillow", "rosbags")
DISCOVERY_RANGES = ("SUBNET", "LOCALHOST", "OFF", "SYSTEM_DEFAULT")
LOST_SHARE_WARN = 0.02
# Two 640x480 rgb8 images, which arrive as thousands of fragments at once.
RMEM_MAX_WARN = 2 * 2**20
# Four processes with the profile's 64 MiB; containers often have 64 MiB in all.
SHM_FREE_WARN = 256 * 2**20
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
PROCESS_LIMIT_S = 90
HOW_TO_COLCON = "build inside the virtual environment, see doc/how-to/colcon-over-venv.md"

TORCH_PROBE = """
import torch
device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
print(f"{torch.__version__} on {device}, {torch.get_num_threads()} threads")
"""
OPENGL_PROBE = """
import os
from diffusion_policy_ros.sim.arm import SimArm
arm = SimArm(render=True)
image = arm.reset(0)["agentview_image"]
assert image.max() > image.min(), "the image is empty"
print(f"{os.environ.get('MUJOCO_GL', 'default')}, {image.shape[1]}x{image.shape[0]} drawn")
"""
OPENVINO_PROBE = """
import diffusion_policy_ros.engine  # OpenVINO without telemetry
import openvino, torch
model = openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))
openvino.compile_model(model, "CPU")
print("a small network converted")
"""
SCRIPT_PROBE = """
import torch, diffusion_policy_ros
print(f"torch {torch.__version__}")
"""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        level: `ok`, `warn` or `fail`.
        found: what was found.
        cure: what to do about it; empty when ok.
    """

    name: str
    level: Level
    found: str
    cure: str = ""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "doctor", help="check Python, torch, ROS, DDS and OpenGL", description=__doc__
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print each finding as soon as it is known; return 0 unless one is `fail`."""
    found = []
    for check in checks():
        found.append(check)
        if not args.json:
            print("\n".join(lines(check)), flush=True)
    healthy = all(check.level != "fail" for check in found)
    if args.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in found]}, indent=2))
    return 0 if healthy else 1


def lines(check: Check) -> Iterator[str]:
    """Yield a finding's line, and its cure's."""
    yield f"{check.level:5} {check.name}: {check.found}"
    if check.cure:
        yield f"{'':5} cure: {check.cure}"


def checks() -> Iterator[Check]:
    """Yield all findings, the quick ones first."""
    groups: tuple[Callable[[], Iterator[Check]], ...] = (
        check_python,
        check_libraries,
        check_torch,
        check_engine,
        check_opengl,
        check_discovery,
        check_profile,
        check_buffers,
        check_dds,
        check_scripts,
    )
    for group in groups:
        yield from group()


def check_python() -> Iterator[Check]:
    """Python itself and the environment that it runs in."""
    where = "virtual environment" if sys.prefix != sys.base_prefix else "system Python"
    yield Check("Python", "ok", f"{platform.python_version()}, {where} {sys.prefix}")


def check_libraries() -> Iterator[Check]:
    """The libraries that every verb may need, but for torch."""
    versions = {name: installed_version(name) for name in CORE_LIBRARIES}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        cure = "install the package with its dependencies: pip install -e ."
        yield Check("libraries", "fail", f"missing: {', '.join(missing)}", cure)
    else:
        yield Check("libraries", "ok", ", ".join(f"{k} {v}" for k, v in versions.items()))


def check_torch() -> Iterator[Check]:
    """PyTorch and the device that it would use."""
    output, error = run_python(sys.executable, TORCH_PROBE)
    if error:
        yield Check("torch", "fail", error, "install it: pip install torch, or make setup")
    else:
        yield Check("torch", "ok", output)


def check_engine() -> Iterator[Check]:
    """What runs a policy on a CPU."""
    if version := installed_version("openvino"):
        output, error = run_python(sys.executable, OPENVINO_PROBE)
        cure = "pip install -e '.[openvino]', which brings what it needs; until then engine:=eager"
        level: Level = "warn" if error else "ok"
        found = f"openvino {version}, {error or output}"
        yield Check("engine", level, found, cure if error else "")
    else:
        cure = "pip install openvino; with a GPU it is not needed"
        yield Check("engine", "warn", "no openvino: policies run several times slower", cure)


def check_opengl() -> Iterator[Check]:
    """The simulator's cameras: one frame drawn without a screen."""
    if importlib.util.find_spec("mujoco") is None:
        cure = "pip install -e '.[sim]'"
        yield Check("OpenGL", "warn", "no mujoco, so no simulated arm, demo or eval", cure)
        return
    output, error = run_python(sys.executable, OPENGL_PROBE)
    if error:
        cure = (
            "apt-get install libegl1 libgl1 libopengl0 libgl1-mesa-dri, or libosmesa6;"
            " without cameras: diffusion-policy demo --state"
        )
        yield Check("OpenGL", "fail", error, cure)
    else:
        yield Check("OpenGL", "ok", output)


def check_discovery() -> Iterator[Check]:
    """Who is found: the domain and the range of discovery."""
    domain = os.environ.get("ROS_DOMAIN_ID", "") or "0"
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "") or "SUBNET"
    found = f"domain {domain}, range {reach}"
    rmw = os.environ.get("RMW_IMPLEMENTATION")
    found += f", RMW_IMPLEMENTATION={rmw}" if rmw else ""
    if not domain.isdigit() or int(domain) > 232:
        cure = "export ROS_DOMAIN_ID with a number from 0 to 101 (to 232 where ports allow)"
        yield Check("discovery", "fail", found, cure)
    elif reach not in DISCOVERY_RANGES:
        cure = f"export ROS_AUTOMATIC_DISCOVERY_RANGE with one of {', '.join(DISCOVERY_RANGES)}"
        yield Check("discovery", "warn", found, cure)
    elif reach == "OFF":
        cure = "export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, or SUBNET for several machines"
        yield Check("discovery", "warn", found, cure)
    else:
        yield Check("discovery", "ok", found)


def profile_variable() -> str:
    """Return the name that this release's Fast DDS reads; Fast DDS 3 (Kilted) renamed it."""
    major = (installed_version("rclpy") or "9").split(".")[0]
    return PROFILE_VARIABLES[0] if int(major) >= 8 else PROFILE_VARIABLES[1]


def check_profile() -> Iterator[Check]:
    """The Fast DDS profile, if one is set: it exists, is XML and has the name that is read."""
    variable = profile_variable()
    other = next(name for name in PROFILE_VARIABLES if name != variable)
    value = os.environ.get(variable, "")
    if not value and os.environ.get(other):
        found = f"{other} is set, but this release reads {variable}"
        yield Check("DDS profile", "warn", found, f"export {variable}={os.environ[other]}")
    elif not value:
        yield Check("DDS profile", "ok", "none, Fast DDS as it comes")
    elif mistake := xml_mistake(Path(value)):
        cure = f"export {variable}={shipped_path('config/fastdds_large_images.xml')}"
        yield Check("DDS profile", "fail", mistake, cure)
    else:
        yield Check("DDS profile", "ok", value)


def xml_mistake(path: Path) -> str:
    """Say what is wrong with an XML file, or nothing."""
    try:
        ElementTree.parse(path)
    except (OSError, ElementTree.ParseError) as error:
        return f"{path}: {error}"
    return ""


def check_buffers() -> Iterator[Check]:
    """The kernel's room for images: socket buffers (other machines), shared memory (this one)."""
    setting = Path("/proc/sys/net/core/rmem_max")
    if setting.exists():
        size = int(setting.read_text())
        cure = "sudo sysctl -w net.core.rmem_max=8388608, for cameras on another machine"
        yield sized("socket buffers", f"net.core.rmem_max {size}", size >= RMEM_MAX_WARN, cure)
    memory = Path("/dev/shm")
    if memory.exists():
        free = shutil.disk_usage(memory).free
        cure = "give /dev/shm more room (docker run --shm-size=1g); clear it: fastdds shm clean"
        found = f"{free / 2**20:.0f} MiB free in {memory}"
        yield sized("shared memory", found, free >= SHM_FREE_WARN, cure)


def sized(name: str, found: str, enough: bool, cure: str) -> Check:
    """Return `ok`, or `warn` with the cure when it is not enough."""
    return Check(name, "ok", found) if enough else Check(name, "warn", found, cure)


def check_dds() -> Iterator[Check]:
    """ROS, and camera images of a real size from one process to another."""
    if importlib.util.find_spec("rclpy") is None:
        cure = "source /opt/ros/<release>/setup.bash, or pip install -e '.[ros]' (x86-64)"
        yield Check("ROS", "warn", "no rclpy: convert, train and eval work, nodes do not", cure)
        return
    output, error = run_python(sys.executable, "-m", "diffusion_policy_ros.demo.loopback")
    if error:
        cure = "use the Python that this ROS was built for, and one ROS in one environment"
        yield Check("ROS", "fail", error, cure)
        return
    result = json.loads(output.splitlines()[-1])
    release = f"{result['distro']} " if result["distro"] else ""
    yield Check("ROS", "ok", f"{release}rclpy {installed_version('rclpy')}, {result['rmw']}")
    yield judge_images(result)


def judge_images(result: dict[str, object]) -> Check:
    """Judge what `demo/loopback.py` measured: whether images arrive, and how many are lost."""
    sent, received = int(str(result["sent"])), int(str(result["received"]))
    if not result["matched"] or not received:
        cure = "export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST; else allow UDP on device lo"
        return Check("DDS images", "fail", "two processes here did not find each other", cure)
    ages = sorted(result["ages_ms"]) if isinstance(result["ages_ms"], list) else []
    lost = 1 - received / sent
    found = (
        f"2 cameras 640x480 rgb8 at 20 Hz: {lost:.0%} lost,"
        f" p50 {ages[len(ages) // 2]:.1f} ms, p99 {ages[int(len(ages) * 0.99)]:.1f} ms"
    )
    profile = shipped_path("config/fastdds_large_images.xml")
    cure = f"for images of this size: export {profile_variable()}={profile}, for every process"
    return sized("DDS images", found, lost <= LOST_SHARE_WARN, cure)


def check_scripts() -> Iterator[Check]:
    """Whether the interpreter of each installed `policy_node` sees torch and this package.

    colcon writes its own interpreter into the scripts: with apt's colcon, the system's Python.
    """
    scripts = node_scripts()
    if not scripts:
        cure = "activate the virtual environment, or source install/setup.bash of the workspace"
        yield Check("ROS scripts", "warn", "no policy_node on PATH or in AMENT_PREFIX_PATH", cure)
    for script in scripts:
        interpreter = script_interpreter(script)
        output, error = run_python(interpreter, SCRIPT_PROBE)
        found = f"{script} runs with {interpreter}: {error or output}"
        if error:
            yield Check("ROS scripts", "fail", found, HOW_TO_COLCON)
        else:
            yield Check("ROS scripts", "ok", found)


def node_scripts() -> list[Path]:
    """List every `policy_node` that a shell or `ros2 run` would start here."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders.append(Path(sys.executable).parent)
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    folders += [Path(prefix, "lib", "diffusion_policy_ros") for prefix in prefixes if prefix]
    found = [folder / "policy_node" for folder in folders]
    return list(dict.fromkeys(path for path in found if path.is_file()))


def script_interpreter(script: Path) -> str:
    """Return the interpreter that a console script names.

    Installers write `#!/path/python`, or, where the path is long or has a space,
    `#!/bin/sh` and then `'''exec' "/path/python" "$0" "$@"`.
    """
    head = script.read_text(errors="replace").splitlines()[:2]
    exec_line = re.match(r"'''exec' (?:\"([^\"]+)\"|(\S+))", head[1]) if len(head) > 1 else None
    if exec_line:
        return exec_line.group(1) or exec_line.group(2)
    words = head[0].removeprefix("#!").split() if head else []
    if words and Path(words[0]).name == "env":
        return shutil.which(words[-1]) or words[-1]
    return words[0] if words else sys.executable


def installed_version(distribution: str) -> str:
    """Return the installed version, or nothing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def run_python(interpreter: str, *arguments: str) -> tuple[str, str]:
    """Run code, or `-m module`, in a process of its own; return its output and what went wrong.

    The working directory is the root, so that only what is installed can be imported.
    """
    command = [interpreter, *(arguments if arguments[0] == "-m" else ("-c", *arguments))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROCESS_LIMIT_S, cwd="/", check=False
        )
    except OSError as error:
        return "", f"{interpreter}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PROCESS_LIMIT_S} s"
    if done.returncode == 0:
        return done.stdout.strip(), ""
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return "", last
