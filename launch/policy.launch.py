"""Run a policy on a robot.

    ros2 launch diffusion_policy_ros policy.launch.py checkpoint:=runs/latest player:=true

The nodes configure and activate themselves (parameter `autostart`), so this works alike on
releases whose launch can do that and on those whose cannot; `ros2 lifecycle` works on them all the
same. The action player starts stopped: call its service `~/resume`.
"""

import sys
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import LifecycleNode

from diffusion_policy_ros.shipped import PACKAGE, shipped_path
from launch import LaunchDescription

# name, default, description; the first ones are the node's parameters of the same names.
PARAMETERS = (
    ("checkpoint", "", "Directory of a trained policy, or of a run"),
    ("contract", "", "Contract of this robot, a file or a shipped name; '': the checkpoint's"),
    ("device", "", "Where to compute: auto, cpu, cuda, cuda:1; '': as params_file says, or auto"),
    ("use_sim_time", "", "true: time comes from /clock; '': as params_file says, or false"),
    ("autostart", "", "false: leave it to ros2 lifecycle; '': as params_file says, or true"),
)
OTHERS = (
    ("namespace", "", "Namespace of both nodes; the contract's relative topics are in it"),
    ("node_name", "policy_node", "Name of the policy node"),
    ("params_file", "", "YAML file of both nodes' parameters, such as config/params/policy.yaml"),
    ("player", "", "true: an action player, too; or its contract, a file or a name; '': none"),
    ("player_name", "action_player", "Name of the action player"),
    (
        "player_remap",
        "",
        "Its topics, as in '~/pose:=/arm/target_pose ~/gripper:=/gripper/command'",
    ),
    ("armed", "", "true: the player is released at once, for simulators; '': as params_file says"),
    ("log_level", "info", "debug, info, warn, error or fatal; of both nodes"),
    (
        "large_images",
        "false",
        "true: DDS as in config/fastdds_large_images.xml, cameras need it too",
    ),
)
SWITCHES = ("use_sim_time", "autostart", "armed")
BOTH = ("use_sim_time", "autostart")


def generate_launch_description():
    """Declare the arguments and start the node."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in PARAMETERS + OTHERS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_node)])


def start_node(context):
    """The policy node, and the player if one was asked for, with the arguments that were given."""
    given = context.launch_configurations
    profile = str(shipped_path("config/fastdds_large_images.xml"))
    # Kilted and later read the first name, Jazzy and Humble the second.
    names = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    large = is_true("large_images", given["large_images"])
    names_given = [name for name, _, _ in PARAMETERS if given[name]]
    policy = node(
        given,
        "policy_node",
        given["node_name"],
        {name: read(name, given[name]) for name in names_given},
        additional_env=dict.fromkeys(names, profile) if large else None,
    )
    return [policy, *player(given)]


def player(given):
    """The action player of the node's chunks; in the same namespace it finds them by its name."""
    wanted = given["player"]
    if wanted.lower() in ("", "false"):
        return []
    values = {name: read(name, given[name]) for name in (*BOTH, "armed") if given[name]}
    values["policy"] = given["node_name"]
    if wanted.lower() != "true":
        values["contract"] = wanted
    remaps = [tuple(word.split(":=")) for word in given["player_remap"].split()]
    if any(len(remap) != 2 for remap in remaps):
        raise RuntimeError(f"player_remap:={given['player_remap']}: write FROM:=TO, with spaces")
    return [node(given, "action_player", given["player_name"], values, remappings=remaps)]


def node(given, kind, name, values, **others):
    """One of the nodes; what is given by name wins over the file."""
    logger = ".".join([*filter(None, given["namespace"].split("/")), name])
    return LifecycleNode(
        **command(kind),
        name=name,
        namespace=given["namespace"],
        parameters=[*filter(None, [given["params_file"]]), values],
        ros_arguments=["--log-level", f"{logger}:={given['log_level']}"],
        output="screen",
        emulate_tty=True,
        **others,
    )


def command(node):
    """What to run: colcon's script, which has the right interpreter, or else the module."""
    try:
        script = Path(get_package_prefix(PACKAGE), "lib", PACKAGE, node)
    except (PackageNotFoundError, OSError):  # no colcon workspace, or no ROS at all, is sourced
        script = Path()
    if script.is_file():
        return {"executable": str(script)}
    arguments = ["-m", f"{PACKAGE}.ros.{node}"]
    return {"executable": sys.executable, "arguments": arguments, "exec_name": node}


def read(name, text):
    """The value of an argument that is a parameter."""
    return is_true(name, text) if name in SWITCHES else text


def is_true(name, text):
    """Read a switch, and refuse what is neither true nor false."""
    if text.lower() not in ("true", "false"):
        raise RuntimeError(f"{name}:={text}: write true or false")
    return text.lower() == "true"
