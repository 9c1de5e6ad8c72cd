"""The launch file, the parameter file and the layouts that are shipped."""

import json
import re
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
def test_the_parameter_file_is_what_the_node_declares(domain, checkpoint):
    """Every name in it, those commented out included; the node takes it as it stands."""
    pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")
    from diffusion_policy_ros.ros.policy_parameters import FIXED, LIVE

    path = shipped_path("config/params/policy_node.yaml")
    names = set(re.findall(r"^    (?:# )?(\w+): ", path.read_text(), re.MULTILINE))
    assert names == {*FIXED, *LIVE, "use_sim_time"}
    command = [sys.executable, "-m", "diffusion_policy_ros.ros.policy_node", "--ros-args"]
    command += ["--params-file", str(path), "-p", "checkpoint:=/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "/nowhere: no such directory" in done.stderr + done.stdout


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
    assert all(len(argument.description) > 10 for argument in arguments.values())


@pytest.mark.launch
@pytest.mark.ros
def test_launch_brings_the_node_up_and_ends_it(domain, checkpoint, robot):
    """To chunks; and a hold comes last when launch is interrupted."""
    pytest.importorskip("launch_ros", reason="launch_ros has no wheels")
    import os
    import signal

    from conftest import Policy
    from live import Process

    class Launched(Policy):
        def start(self, domain, parameters):
            script = (
                "import sys, launch\n"
                "from launch.actions import IncludeLaunchDescription\n"
                "from launch.launch_description_sources import PythonLaunchDescriptionSource\n"
                "service = launch.LaunchService()\n"
                "source = PythonLaunchDescriptionSource(sys.argv[1])\n"
                "given = [tuple(word.split(':=')) for word in sys.argv[2:]]\n"
                "include = IncludeLaunchDescription(source, launch_arguments=given)\n"
                "service.include_launch_description(launch.LaunchDescription([include]))\n"
                "sys.exit(service.run())\n"
            )
            log = domain.folder / "launch.log"
            words = [sys.executable, "-c", script, str(LAUNCH)]
            words += [f"{name}:={value}" for name, value in parameters.items()]
            environment = {**os.environ, "ROS_DOMAIN_ID": str(domain.domain)}
            with log.open("w") as file:
                popen = subprocess.Popen(words, env=environment, stdout=file, stderr=file)
            return Process(popen, log)

    policy = Launched(domain, checkpoint)
    try:
        policy.until_running()
        policy.process.signal(signal.SIGINT)
        policy.until_holds()
        assert policy.process.wait() == 0
    finally:
        policy.process.end()
    assert "process has finished cleanly" in policy.process.output
