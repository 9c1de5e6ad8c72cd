"""Bags that lost pictures, and bags with several demonstrations in them."""

import numpy as np
import pytest
from made_bags import (
    CONTRACT,
    MS,
    NEXT_STATE,
    PERIOD,
    START,
    demonstration,
    filled,
    joint_state,
    write_bag,
)

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import BagWriter, serialize
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset


def lossy(lost, frames=40):
    """A demonstration without the pictures of these frames."""
    for topic, ns, msg in demonstration(frames):
        if topic != "/camera" or (ns - START) // PERIOD not in lost:
            yield topic, ns, msg


def report_of(tmp_path, messages, contract=CONTRACT, **options):
    """What became of a bag."""
    bag = write_bag(tmp_path / "bag", messages, contract)
    return convert([bag], contract, tmp_path / "data", options=Options(True, **options)).bags[0]


def test_gaps_are_bridged_by_option_and_marked(tmp_path):
    """One and two missing frames are there, three are a gap."""
    lost = {5, 12, 13, 20, 21, 22}
    report = report_of(tmp_path, lossy(lost), max_gap_frames=2)
    assert [frames for _, frames in report.episodes] == [20, 17]
    assert "3 missing frames bridged" in report.notes and report.gaps == 1
    found = Dataset(tmp_path / "data").episode(0)
    assert found["position"][:, 0] == pytest.approx(0.01 * np.arange(20), abs=1e-6)
    assert np.diff(found["stamp_ns"]).tolist() == [PERIOD] * 19
    assert (found["camera"][5] == found["camera"][4]).all()


def test_without_the_option_a_gap_ends_an_episode(tmp_path):
    """As before."""
    report = report_of(tmp_path, lossy({5, 12}))
    assert len(report.episodes) == 3 and not any("bridged" in note for note in report.notes)


def test_derived_actions_go_over_a_bridge_evenly(tmp_path):
    """Not none, and then twice as much."""
    messages = [m for m in lossy({5}) if m[0] != "/command"]
    report_of(tmp_path, messages, NEXT_STATE, max_gap_frames=1)
    actions = Dataset(tmp_path / "data").episode(0)["action"][:, 0]
    assert actions == pytest.approx(0.01, abs=1e-6)


def test_a_continuous_joint_goes_over_a_bridge_the_short_way_round(tmp_path):
    """From 3.1 to -3.08 rad over pi, not over zero; the joint beside it as it is told."""
    text = """
name: turning
rate_hz: 20
anchor: joints
observations:
  joints: {topic: /joint_states, type: sensor_msgs/msg/JointState, names: [a, b]}
action:
  fields: [{name: arm, kind: joint_position, size: 2, state: joints, wrap: [true, false]}]
  record: next_state
"""
    messages = []
    for i in range(10):
        ns, turned = START + i * PERIOD, 3.0 + 0.05 * i
        told = [turned - 2 * np.pi * (turned > np.pi), turned]
        messages += [("/joint_states", ns, joint_state(ns, ["a", "b"], told))] if i != 3 else []
    report_of(tmp_path, messages, Contract.from_text(text), max_gap_frames=1)
    joints = Dataset(tmp_path / "data").episode(0)["joints"]
    assert joints[3] == pytest.approx([3.15, 3.15], abs=1e-5)


@pytest.fixture
def long_bag(tmp_path):
    """Forty frames, and a mark on a topic of its own after the tenth and the thirtieth."""
    mark = "std_msgs/msg/Bool"
    types = {**CONTRACT.recorded_topics, "/mark": mark}
    marks = [("/mark", START + i * PERIOD - MS, filled(mark)) for i in (10, 30)]
    with BagWriter(tmp_path / "long", types) as writer:
        for topic, ns, msg in sorted([*demonstration(40), *marks], key=lambda entry: entry[1]):
            writer.write(topic, ns, serialize(types[topic], msg))
    return tmp_path / "long"


@pytest.mark.parametrize(
    "words", [["--split-topic", "/mark"], ["--split-times", "0.5", "1.5"]], ids=["topic", "times"]
)
def test_a_long_bag_is_split_at_marks_and_times(words, long_bag, tmp_path):
    """Three demonstrations of one bag."""
    (tmp_path / "made.yaml").write_text(CONTRACT.text)
    common = ["convert", str(long_bag), "--contract", str(tmp_path / "made.yaml"), "--keep-idle"]
    assert main([*common, "--out", str(tmp_path / "data"), *words]) == 0
    dataset = Dataset(tmp_path / "data")
    assert [episode.frames for episode in dataset.episodes] == [10, 20, 10]
    assert dataset.episode(1)["position"][0, 0] == pytest.approx(0.1)


@pytest.mark.parametrize("option", ["--split-times", "--split-still"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-1"])
def test_times_that_no_recording_has_are_refused(tmp_path, option, value, capsys):
    """In one line."""
    (tmp_path / "made.yaml").write_text(CONTRACT.text)
    words = ["--contract", str(tmp_path / "made.yaml"), "--out", str(tmp_path / "data")]
    assert main(["convert", str(tmp_path), *words, f"{option}={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line and "give seconds, from 0 to 1e+06" in line


def test_a_mark_that_was_not_recorded_is_named(long_bag, tmp_path):
    """With what there is."""
    with pytest.raises(Exception, match="/marks, at which to split, is not in the bag; it has"):
        convert([long_bag], CONTRACT, tmp_path / "d", options=Options(split_topic="/marks"))
