"""The launch file, the parameter file and the layouts that are shipped."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import yaml

from diffusion_policy_ros.shipped import shipped_path

LAUNCH = shipped_path("launch/policy.launch.py")


def test_layouts_show_the_topics_of_the_node_and_of_the_shipped_contract():
    """Both files parse, and the panels of the layout are all described."""
    rviz = yaml.safe_load(shipped_path("config/rviz/policy.rviz").read_text())
    shown = [
        display.get("Topic", {}).get("Value")
        for display in rviz["Visualization Manager"]["Displays"]
    ]
    assert {"/agentview/image_raw", "/eye_in_hand/image_raw", "/policy_node/planned_path"} <= {
        *shown
    }
    text = shipped_path("config/foxglove/policy.json").read_text()
    layout = json.loads(text)
    named = set(re.findall(r'"(?:first|second)": "([^"]+)"', text))
    assert named == set(layout["configById"])


@pytest.mark.ros
def test_the_parameter_file_is_what_the_nodes_declare(domain):
    """Every name in it, those commented out included; both nodes take it as it stands, in any
    namespace.
    """
    pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")
    from rclpy.node import Node

    from diffusion_policy_ros.ros.player_parameters import LIMITS, declare_all
    from diffusion_policy_ros.ros.policy_parameters import FIXED, LIVE

    path = shipped_path("config/params/policy.yaml")
    policy, player = path.read_text().split("/**/action_player:")
    names = set(re.findall(r"^    (?:# )?([\w.]+): ", policy, re.MULTILINE))
    assert names == {*FIXED, *LIVE, "use_sim_time"}
    names = set(re.findall(r"^    (?:# )?(\w+): ", player, re.MULTILINE))
    node = Node("action_player", context=domain.node.context, use_global_arguments=False)
    declare_all(node)
    declared = {*node._parameters} - {*LIMITS} | {"velocity"}
    assert names == {name for name in declared if "type_desc" not in name}
    node.destroy_node()
    files = ["--ros-args", "-r", "__ns:=/left", "--params-file", path]
    node = domain.start("policy_node", *files, checkpoint="/nowhere")
    assert node.wait() == 2 and "/nowhere: no such directory" in node.output
    player = domain.start("action_player", *files)
    domain.until(lambda: "unconfigured" in player.output, why="it waits for a contract")
    assert "does nothing" not in player.output


@pytest.mark.launch
def test_every_launch_argument_is_explained():
    """What `ros2 launch --show-args` prints."""
    pytest.importorskip("launch_ros", reason="launch_ros has no wheels")
    from launch.launch_description_sources import get_launch_description_from_python_launch_file

    description = get_launch_description_from_python_launch_file(str(LAUNCH))
    arguments = {argument.name: argument for argument in description.get_launch_arguments()}
    assert {"checkpoint", "contract", "device", "namespace", "node_name", "params_file"} <= {
        *arguments
    }
    assert {"use_sim_time", "autostart", "log_level", "large_images"} <= {*arguments}
    assert {"player", "player_name", "player_remap", "armed"} <= {*arguments}
    assert all(len(argument.description) > 10 for argument in arguments.values())


SCRIPT = """
import sys, launch
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
service = launch.LaunchService()
source = PythonLaunchDescriptionSource(sys.argv[1])
given = [tuple(word.split(":=", 1)) for word in sys.argv[2:]]
include = IncludeLaunchDescription(source, launch_arguments=given)
service.include_launch_description(launch.LaunchDescription([include]))
sys.exit(service.run())
"""


@pytest.fixture
def launched(domain):
    """Runs the launch file with arguments, and ends it."""
    pytest.importorskip("launch_ros", reason="launch_ros has no wheels")
    from live import Process

    processes = []

    def launch(**arguments):
        log = domain.folder / "launch.log"
        words = [sys.executable, "-c", SCRIPT, str(LAUNCH)]
        words += [f"{name}:={value}" for name, value in arguments.items()]
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain.domain)}
        with log.open("w") as file:
            popen = subprocess.Popen(words, env=environment, stdout=file, stderr=file)
        processes.append(Process(popen, log, domain.until))
        return processes[-1]

    yield launch
    for process in processes:
        process.end()


@pytest.mark.launch
@pytest.mark.ros
def test_launch_brings_the_node_up_and_ends_it(domain, checkpoint, robot, launched, tmp_path):
    """To chunks; and a hold comes last when launch is interrupted."""
    from nodes import Policy

    eager = tmp_path / "eager.yaml"  # compiling takes minutes on a busy machine
    eager.write_text("/**: {ros__parameters: {engine: eager, threads: 1}}")

    class Launched(Policy):
        def start(self, domain, parameters):
            return launched(**parameters, params_file=eager)

    policy = Launched(domain, checkpoint)
    policy.until_running()
    policy.process.signal(signal.SIGINT)
    policy.until_holds()
    assert policy.process.wait() == 0
    assert "process has finished cleanly" in policy.process.output


PARAMETERS = """
/**/policy_node:
  ros__parameters: {checkpoint: CHECKPOINT, contract: CONTRACT, engine: eager, threads: 1}
/**/action_player:
  ros__parameters: {rate_hz: 50.0, velocity: 0.3}
/**:
  ros__parameters: {use_sim_time: true}
"""


@pytest.mark.launch
@pytest.mark.ros
def test_launch_of_both_nodes(domain, checkpoint, launched, tmp_path):
    """In a namespace, under simulated time, with one file of parameters for both: the player takes
    the policy's contract and plays its chunks, on the topic that it was moved to.
    """
    pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")
    from geometry_msgs.msg import PoseStamped
    from nodes import CONTRACT, PERIOD_NS, Robot
    from rosgraph_msgs.msg import Clock

    from diffusion_policy_ros.observe.codecs import stamp_ns
    from diffusion_policy_ros.ros.chunks import time_msg

    contract, file = tmp_path / "robot.yaml", tmp_path / "both.yaml"
    contract.write_text(CONTRACT.text.replace("topic: /", "topic: "))
    text = PARAMETERS.replace("CHECKPOINT", str(checkpoint))
    file.write_text(text.replace("CONTRACT", str(contract)))
    remap = "~/pose:=arm/target"
    launched(namespace="left", params_file=file, player="true", armed="true", player_remap=remap)
    robot = Robot(domain, namespace="/left")
    robot.silence()
    robot.change = at_rest
    clock = domain.node.create_publisher(Clock, "/clock", 10)
    now_ns = [10**9]

    def tick():
        now_ns[0] += PERIOD_NS
        clock.publish(Clock(clock=time_msg(now_ns[0])))
        robot.send(now_ns[0])

    timer = domain.node.create_timer(PERIOD_NS / 1e9, tick)
    told = domain.listen(PoseStamped, "/left/arm/target")
    domain.until(lambda: len(told) > 10, why="set-points come")
    timer.cancel()
    assert all(0 < stamp_ns(message) <= now_ns[0] for message in told)


def at_rest(topic, message):
    """The same of an arm that does not move."""
    if topic == "/eef_pose":
        place = message.pose.position
        place.x, place.y, place.z = 0.0, 0.0, 0.2
    return message
