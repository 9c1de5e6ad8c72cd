"""Run a policy on a robot.

    ros2 launch diffusion_policy_ros policy.launch.py checkpoint:=runs/latest

The node configures and activates itself (parameter `autostart`), so this works alike on releases
whose launch can do that and on those whose cannot; `ros2 lifecycle` works on it all the same.
"""

import sys
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import LifecycleNode, Node

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
    ("namespace", "", "Namespace of the node; the contract's relative topics are in it"),
    ("node_name", "policy_node", "Name of the node"),
    ("params_file", "", "YAML file of parameters, such as config/params/policy_node.yaml"),
    ("player", "", "Contract of an action player beside the node, a file or a name; '': none"),
    ("log_level", "info", "debug, info, warn, error or fatal"),
    (
        "large_images",
        "false",
        "true: DDS as in config/fastdds_large_images.xml, cameras need it too",
    ),
)
SWITCHES = ("use_sim_time", "autostart")


def generate_launch_description():
    """Declare the arguments and start the node."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in PARAMETERS + OTHERS
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_node)])


def start_node(context):
    """The node, with the arguments that were given."""
    given = context.launch_configurations
    parameters = [given["params_file"]] if given["params_file"] else []
    values = {name: given[name] for name, _, _ in PARAMETERS if given[name]}
    values.update({name: is_true(name, values[name]) for name in SWITCHES if name in values})
    robot = [player(given, values)] if given["player"] else []
    logger = ".".join([*filter(None, given["namespace"].split("/")), given["node_name"]])
    profile = str(shipped_path("config/fastdds_large_images.xml"))
    large = is_true("large_images", given["large_images"])
    return [
        *robot,
        LifecycleNode(
            **command("policy_node"),
            name=given["node_name"],
            namespace=given["namespace"],
            parameters=[*parameters, values],
            ros_arguments=["--log-level", f"{logger}:={given['log_level']}"],
            # Kilted and later read the first name, Jazzy and Humble the second.
            additional_env={
                "FASTDDS_DEFAULT_PROFILES_FILE": profile,
                "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
            }
            if large
            else None,
            output="screen",
            emulate_tty=True,
        ),
    ]


def player(given, values):
    """The action player of the node's chunks."""
    chunks = "/".join(["", *filter(None, given["namespace"].split("/")), given["node_name"]])
    parameters = {"contract": given["player"], "action_topic": f"{chunks}/action_chunk"}
    if "use_sim_time" in values:
        parameters["use_sim_time"] = values["use_sim_time"]
    return Node(
        **command("action_player"),
        name="action_player",
        namespace=given["namespace"],
        parameters=[parameters],
        output="screen",
        emulate_tty=True,
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


def is_true(name, text):
    """Read a switch, and refuse what is neither true nor false."""
    if text.lower() not in ("true", "false"):
        raise RuntimeError(f"{name}:={text}: write true or false")
    return text.lower() == "true"
