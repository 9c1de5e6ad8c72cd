"""How a node's process starts."""

import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diffusion_policy_ros.errors import UserError  # noqa: E402
from diffusion_policy_ros.ros import (  # noqa: E402
    action_player,
    episode_recorder,
    policy_node,
    sim_robot,
)
from diffusion_policy_ros.ros.processes import start  # noqa: E402

pytestmark = pytest.mark.ros


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "checkpoint"], "'-p checkpoint'"),
        (["-r", "here"], "'-r here'"),
        (["--params-file", "nowhere.yaml"], "nowhere.yaml"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_arguments_that_cannot_be_read_are_one_line(words, said):
    """The words themselves are shown, without places in ROS' sources."""
    with pytest.raises(UserError) as caught:
        start(["node", "--ros-args", *words])
    assert said in str(caught.value) and "/src/" not in str(caught.value)


@pytest.mark.parametrize(
    ("main", "parameter"),
    [
        (policy_node.main, "num_inference_steps"),
        (episode_recorder.main, "extra_topics"),
        (sim_robot.main, "publish_clock"),
        (action_player.main, "observation_timeout_s"),
    ],
)
def test_help_tells_of_every_parameter(main, parameter, capsys):
    """It says what the node is and what can be set, and starts nothing."""
    assert main(["node", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--ros-args -p" in said and f"\n  {parameter}\n" in said


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        ("sim_robot", {"cameras": False, "action_topic": "/a-b"}),
        ("episode_recorder", {"contract": "mini_lift", "extra_topics": "['/a-b']"}),
        ("action_player", {"contract": "mini_lift", "policy": "/a-b"}),
    ],
)
def test_a_name_that_is_no_topics_is_one_line(domain, module, parameters):
    """With the name, what is wrong with it, and exit code 2."""
    process = domain.start(module, **parameters)
    assert process.wait() == 2
    errors = [line for line in process.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "'/a-b" in errors[0] and "Traceback" not in process.output


@pytest.mark.parametrize("name", ["action_player", "episode_recorder", "sim_robot"])
def test_what_runs_beside_the_policy_needs_no_torch(name):
    """A hundred megabytes and two seconds less on the robot's computer, for each."""
    code = f"import sys; sys.modules['torch'] = None; import diffusion_policy_ros.ros.{name}"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_stop_signal_that_is_lost_ends_the_process_all_the_same():
    """The exception that it raises can end in a callback of rclpy, which takes it for its own."""
    lost = (
        "import os, signal\n"
        "from diffusion_policy_ros.ros.processes import on_stop_signal, raise_on_stop_signal\n"
        "raise_on_stop_signal()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n    pass\n"
        "on_stop_signal(lambda: print('stops'))\n"
    )
    done = subprocess.run([sys.executable, "-c", lost], capture_output=True, text=True, timeout=60)
    assert done.stdout == "stops\n", done.stderr
