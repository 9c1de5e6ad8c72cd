"""`diffusion-policy latency` on recordings whose latencies are known, and on a trace."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "data"))
from made_bags import (
    CONTRACT,
    MS,
    NEXT_STATE,
    START,
    image,
    joint_state,
    pose,
    trajectory,
    write_bag,
)
from test_lags import motion

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, message_types, open_bag, serialize
from diffusion_policy_ros.data.latency import estimate
from diffusion_policy_ros.observe.codecs import stamp_ns
from diffusion_policy_ros.observe.serialized import ENCAPSULATION
from diffusion_policy_ros.runtime.trace import ChunkTimes, Trace

ACTUATION_S, CAMERA_S, FRAMES = 0.12, 0.07, 400
THIRD_S = 0.05 / 3
BRIGHT = 120 / np.abs(motion(0)(np.arange(-1, 25, 0.05))).max()


def recording(frames=FRAMES, speed=1.0):
    """A pose that follows its commands late, and a camera that sees it later still."""
    where = motion(0)
    for i in range(frames):
        ns, t = START + 50 * MS * i, 0.05 * i
        moments = speed * np.array([t, t - 0.05, t - ACTUATION_S, t - ACTUATION_S - CAMERA_S])
        now, before, seen, pictured = where(moments)
        turn = np.array([0.0, 0.0, np.sin(3 * seen[2]), np.cos(3 * seen[2])])
        bright = 127 + BRIGHT * pictured + np.zeros((4, 6, 1))
        yield "/pose", ns + 1 * MS, pose(ns, seen, turn)
        yield "/camera", ns + 20 * MS, image(ns, bright.astype(np.uint8))
        delta = [*(now - before), 0, 0, 6 * (now - before)[2], 1.0]
        yield "/command", ns + 5 * MS, trajectory(ns, delta)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """20 s of it."""
    path = tmp_path_factory.mktemp("latency") / "bag"
    return write_bag(path, recording(), CONTRACT, {"contract": CONTRACT.text})


def test_both_latencies_are_found_and_printed_for_the_contract(bag, tmp_path, capsys):
    """Commands to pose, pose to camera; what was not moved is unknown, with the reason."""
    out, plot = tmp_path / "latency.json", tmp_path / "latency.png"
    assert main(["latency", str(bag), "--json", str(out), "--plot", str(plot)]) == 0
    found = json.loads(out.read_text())
    for name in ("translation", "rotation"):
        assert found["fields"][name]["actuation_latency_s"] == pytest.approx(
            ACTUATION_S, abs=THIRD_S
        )
    assert found["fields"]["gripper"]["actuation_latency_s"] is None
    assert found["topics"]["/camera"]["observation_latency_s"] == pytest.approx(
        CAMERA_S, abs=THIRD_S
    )
    assert found["topics"]["/camera"]["delivery_ms"] == pytest.approx([20.0, 20.0])
    printed = capsys.readouterr().out
    assert "observations.camera: observation_latency_s: 0.0" in printed
    assert "observations.eef_pos: observation_latency_s" not in printed  # compared with itself
    assert "action.fields, name translation: actuation_latency_s: 0.1" in printed
    assert "unknown   gripper: " in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_arm_that_rests_says_nothing(tmp_path, capsys, monkeypatch):
    """Nothing is to be written into the contract, and the exit code is 0.

    The picture lies in the current folder, and not beside bags that may be shared.
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = write_bag(
        tmp_path / "rest", recording(100, speed=0.0), CONTRACT, {"contract": CONTRACT.text}
    )
    assert main(["latency", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "unknown   translation: too little moves" in printed
    assert "nothing: no latency could be told" in printed
    assert [file.name for file in Path.cwd().iterdir()] == ["rest.latency.png"]


JOINTS = """
name: joints
rate_hz: 20
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b, c]}
action:
  fields: [{name: arm, kind: KIND, size: 3, state: joints}]
  record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [3]}
"""


@pytest.mark.parametrize("stamped", [True, False], ids=["stamped", "zero"])
@pytest.mark.parametrize("kind", ["delta_joint_position", "joint_velocity", "joint_position"])
def test_joints_are_compared_whatever_they_are_told_by(kind, stamped, tmp_path):
    """Steps of joints seemed 0.2 s later, and commands without stamps to be none."""
    where, contract = motion(0), Contract.from_text(JOINTS.replace("KIND", kind))
    messages = []
    for i in range(FRAMES):
        ns, t = START + 50 * MS * i, 0.05 * i
        now, before, seen = where(np.array([t, t - 0.05, t - ACTUATION_S]))
        told = now if kind == "joint_position" else now - before
        messages += [("/command", ns, trajectory(ns * stamped, told))]
        messages += [("/joint_states", ns + MS, joint_state(ns, "abc", seen))]
    bag = write_bag(tmp_path / "bag", messages, contract)
    (field,) = estimate([open_bag(bag)], contract).fields
    assert field.lag.correlation > 0.95
    assert field.actuation_s == pytest.approx(ACTUATION_S, abs=THIRD_S)


def test_a_goal_that_stands_has_no_latency(tmp_path):
    """It was said once, long ago; only what is measured again and again is late."""
    goal = "  goal: {topic: /goal, type: geometry_msgs/msg/PoseStamped, static: true}\naction:"
    contract = Contract.from_text(CONTRACT.text.replace("action:", goal))
    messages = [("/goal", START - MS, pose(START - 5000 * MS, np.ones(3))), *recording(100)]
    bag = write_bag(tmp_path / "bag", messages, contract)
    assert {one.topic for one in estimate([open_bag(bag)], contract).topics} == {
        "/pose",
        "/camera",
    }


def test_a_run_of_the_policy_has_no_commands(tmp_path):
    """The recorder's commands:=false; what is observed is compared all the same."""
    messages = (message for message in recording() if message[0] != "/command")
    bag = write_bag(tmp_path / "bag", messages, CONTRACT)
    found = estimate([open_bag(bag)], CONTRACT)
    assert found.fields[0].lag.why == "there are too few messages"
    assert found.topics[0].observation_s == pytest.approx(CAMERA_S, abs=THIRD_S)


def test_without_commands_the_streams_are_compared_all_the_same(bag, tmp_path):
    """Actions that are derived from states have no actuation latency to be seen."""
    contract, out = tmp_path / "contract.yaml", tmp_path / "latency.json"
    contract.write_text(NEXT_STATE.text)
    options = ["--contract", str(contract), "--json", str(out), "--plot", str(tmp_path / "p.png")]
    assert main(["latency", str(bag), *options]) == 0
    found = json.loads(out.read_text())
    assert "no command was recorded" in found["fields"]["translation"]["unknown"]
    assert found["topics"]["/camera"]["observation_latency_s"] == pytest.approx(
        CAMERA_S, abs=THIRD_S
    )


def test_the_simulated_arm_follows_within_two_frames(tmp_path):
    """From its expert's demonstrations; commands stamped 30 ms late seem 30 ms quicker."""
    pytest.importorskip("mujoco", reason="needs mujoco: pip install -e '.[sim]'")
    from diffusion_policy_ros.demonstrations import record_demonstrations

    contract = Contract.load("mini_lift_state")
    bags = record_demonstrations(contract, tmp_path / "bags", 4).bags
    late = [restamped(bag, tmp_path / f"late_{bag.name}", 30 * MS) for bag in bags]
    lags = []
    for i, paths in enumerate((bags, late)):
        out = tmp_path / f"{i}.json"
        plot = ["--plot", str(tmp_path / "p.png"), "--json", str(out)]
        assert main(["latency", *map(str, paths), *plot]) == 0
        lags.append(json.loads(out.read_text())["fields"]["translation"]["lag_s"])
    assert 0.0 < lags[0] < 0.1
    assert lags[0] - lags[1] == pytest.approx(0.03, abs=THIRD_S)


def restamped(bag, path, later_ns):
    """The same with commands that are stamped later."""
    read = open_bag(bag)
    types = {topic: kind for topic, (kind, _) in read.topics.items()}
    with BagWriter(path, types, read.metadata) as writer:
        for topic, log_ns, msg in read.messages():
            data = bytearray(msg._raw)
            if topic == "/eef_command":
                stamp = divmod(stamp_ns(msg) + later_ns, 10**9)
                struct.pack_into("<iI", data, ENCAPSULATION, *stamp)
            writer.write(topic, log_ns, bytes(data))
    return path


def test_a_node_that_was_recorded_is_heard(tmp_path, capsys, monkeypatch):
    """Its own latency and the delay of each stream, from /diagnostics."""
    monkeypatch.chdir(tmp_path)
    pair = message_types("diagnostic_msgs/msg/KeyValue")
    pairs = {"latency_ms_p99": "41.5", "deadline_misses": "2", "camera.delay_s": "0.0150"}
    values = [pair(key=key, value=value) for key, value in pairs.items()]
    status = message_types("diagnostic_msgs/msg/DiagnosticStatus")(
        level=0, name="/policy_node: policy", message="running", hardware_id="", values=values
    )
    path, type_name = tmp_path / "run", "diagnostic_msgs/msg/DiagnosticArray"
    types = {**CONTRACT.recorded_topics, "/diagnostics": type_name}
    with BagWriter(path, types, {"contract": CONTRACT.text}) as writer:
        for topic, log_ns, msg in recording(80):
            writer.write(topic, log_ns, serialize(types[topic], msg))
        header = message_types("std_msgs/msg/Header")(
            stamp=message_types("builtin_interfaces/msg/Time")(sec=1, nanosec=0), frame_id=""
        )
        said = message_types(type_name)(header=header, status=[status])
        writer.write("/diagnostics", START, serialize(type_name, said))
    assert main(["latency", str(path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {key}: {value}" in printed for key, value in pairs.items())


def test_a_trace_shows_where_the_time_went(tmp_path, capsys, monkeypatch):
    """Median and tail of each stage; a missed deadline counts for the stage that took too long."""
    monkeypatch.chdir(tmp_path)
    trace, stages = Trace(tmp_path / "trace.csv"), np.array([1, 2, 0.5, 30, 1]) * MS
    for i in range(50):
        took = stages.copy()
        took[3] *= 4 if i == 20 else 1
        ends = i * 200 * MS + np.cumsum([0, *took]).astype(int)
        trace.add(ChunkTimes(*map(int, ends), due_ns=int(ends[-1]), missed=int(i == 20)))
    trace.close()
    out = tmp_path / "trace.json"
    assert main(["latency", str(trace.path), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["chunks"] == 50 and found["deadline_misses"] == 1
    assert found["stages"]["sampling"] == {
        "p50_ms": 30.0, "p99_ms": pytest.approx(75.9), "max_ms": 120.0, "misses": 1
    }  # fmt: skip
    assert "trace     " in capsys.readouterr().out
    assert Path("trace.latency.png").is_file()


def test_a_trace_that_was_cut_off_is_shown_up_to_its_last_whole_line(tmp_path, monkeypatch):
    """The node was killed while it wrote."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trace.csv"
    line = "1,2,3,4,5,6,7,0\n"
    path.write_text(",".join(ChunkTimes._fields) + "\n" + line * 3 + "1,2,3")
    assert main(["latency", str(path), "--json", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["chunks"] == 3


def bad(folder):
    """Arguments that cannot be served, and words of the answer."""
    (folder / "other.csv").write_text("a,b\n1,2\n")
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.csv").write_text(",".join(ChunkTimes._fields) + "\n")
    unnamed = write_bag(folder / "unnamed", recording(5))
    yield [folder / "none"], "no such bag"
    yield [folder / "none.csv"], "cannot be read"
    yield [folder / "other.csv"], "is no trace"
    yield [folder / "binary.csv"], "is no trace"
    yield [folder / "empty.csv"], "no chunk"
    yield [folder / "other.csv", folder / "none"], "shown alone"
    yield [unnamed], "give --contract"
    yield [unnamed, "--plot", folder / "lags.pdf"], "end the name in .png"
    yield [unnamed, "--contract", "mini_lift", "--json", folder], "is a folder"
    yield [unnamed, "--contract", "mini_lft"], "no such contract"


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    """No traceback, exit code 2."""
    monkeypatch.chdir(tmp_path)
    for arguments, words in bad(tmp_path):
        assert main(["latency", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1, error
