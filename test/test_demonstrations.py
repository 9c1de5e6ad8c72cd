"""Demonstrations: the expert's episodes as rosbag2 files."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diffusion_policy_ros import demonstrations
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import open_bag
from diffusion_policy_ros.demonstrations import record_demonstrations
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import decode, stamp_ns
from diffusion_policy_ros.observe.history import Frame, History
from diffusion_policy_ros.sim import lift
from diffusion_policy_ros.sim.arm import PERIOD_NS
from diffusion_policy_ros.sim.expert import Expert
from diffusion_policy_ros.simulated_robot import SimulatedRobot

CAMERAS, STATE = Contract.load("mini_lift"), Contract.load("mini_lift_state")


def content(bag: Path) -> bytes:
    """The bytes of a bag's storage."""
    return next(bag.glob("*.mcap")).read_bytes()


@pytest.fixture(scope="module")
def camera_bag(tmp_path_factory) -> Path:
    """One demonstration with cameras."""
    return record_demonstrations(CAMERAS, tmp_path_factory.mktemp("demos"), 1, first_seed=3).bags[
        0
    ]


@pytest.fixture(scope="module")
def state_bags(tmp_path_factory) -> list[Path]:
    """Two demonstrations without."""
    return record_demonstrations(STATE, tmp_path_factory.mktemp("demos"), 2).bags


def test_bag_holds_the_contracts_topics_and_what_was_recorded(camera_bag):
    """Every topic of the contract, one message a frame and nothing else; contract, seed and
    success are noted.
    """
    bag = open_bag(camera_bag)
    counts = Counter(message.topic for message in bag.messages())
    assert set(counts) == set(CAMERAS.recorded_topics)
    assert len(set(counts.values())) == 1
    assert 20 < counts["/eef_pose"] <= 210
    assert Contract.from_text(bag.metadata["contract"]).hash == CAMERAS.hash
    assert bag.metadata["seed"] == "3" and bag.metadata["success"] == "true"


def test_messages_arrive_a_little_after_their_stamps(camera_bag):
    """Log times run forwards, each less than half a frame after its message's stamp."""
    arrivals = [(m.log_ns, stamp_ns(m.msg)) for m in open_bag(camera_bag).messages()]
    assert [log for log, _ in arrivals] == sorted(log for log, _ in arrivals)
    assert all(0 < log - stamp < PERIOD_NS / 2 for log, stamp in arrivals)


def test_every_frame_has_its_action(camera_bag):
    """The frame rule makes one window of every instant, and each has a command with the frame's
    own stamp.
    """
    history, frames, commands = History(CAMERAS, 2), [], {}
    record = CAMERAS.action.commands[0]
    for topic, log_ns, msg in open_bag(camera_bag).messages():
        if topic == record.topic:
            commands[stamp_ns(msg)] = decode(record, msg)
        else:
            frames += history.push(topic, msg, log_ns)
    assert all(isinstance(frame, Frame) for frame in frames)
    assert [frame.first for frame in frames] == [True] + [False] * (len(frames) - 1)
    assert [frame.time_ns for frame in frames] == list(commands)


def test_actions_are_the_experts_clean_ones(state_bags):
    """The first action recorded is what the expert wants at the first observation, without its
    noise.
    """
    robot = SimulatedRobot(STATE, cameras=False, expert=True)
    robot.reset(1, 0)
    clean, executed = Expert(1).act(
        robot.obs, robot.obs["robot0_eef_pos"], robot.obs["robot0_eef_quat"]
    )
    recorded = [
        decode(STATE.action.commands[0], m.msg)
        for m in open_bag(state_bags[1]).messages(["/eef_command"])
    ]
    np.testing.assert_allclose(recorded[0], clean, atol=1e-7)
    assert not np.allclose(recorded[0], executed, atol=1e-4)


def test_same_seed_same_bag_whatever_the_number_of_processes(state_bags, tmp_path):
    """Two processes write what one writes, byte for byte."""
    again = record_demonstrations(STATE, tmp_path, 2, jobs=2)
    assert [bag.name for bag in again.bags] == ["seed_00000", "seed_00001"]
    assert [content(bag) for bag in again.bags] == [content(bag) for bag in state_bags]


def test_going_on_keeps_what_is_there_and_mends_what_is_half(tmp_path):
    """A second run records only what is missing; a bag that was cut off is recorded again."""
    first = record_demonstrations(STATE, tmp_path, 2).bags
    before = content(first[0])
    (first[1] / "metadata.yaml").unlink()
    seen = []
    again = record_demonstrations(
        STATE, tmp_path, 3, progress=lambda r, n: seen.append((len(r.bags), n))
    )
    assert (len(again.bags), again.skipped) == (3, 1)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert content(first[0]) == before and (first[1] / "metadata.yaml").is_file()


def killed(_seed):
    """Ends the process at once."""
    os._exit(9)


def test_a_process_that_is_killed_is_one_line(tmp_path, monkeypatch):
    """As where memory ran out."""
    monkeypatch.setattr(demonstrations, "_record_in_worker", killed)
    with pytest.raises(UserError, match="a process ended before its work; check the memory"):
        record_demonstrations(STATE, tmp_path, 2, jobs=2)


class _Stubborn(Expert):
    """Does nothing in the episode of seed 1."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._idle = seed == 1

    def act(self, *args):
        clean, executed = super().act(*args)
        return (clean * 0, executed * 0) if self._idle else (clean, executed)


def test_failed_episodes_are_not_kept_but_made_up_for(tmp_path, monkeypatch):
    """A failed episode leaves no bag, is named, and the next seed takes its place."""
    monkeypatch.setattr(lift, "Expert", _Stubborn)
    recorded = record_demonstrations(STATE, tmp_path, 2)
    assert recorded.failed == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed_00000", "seed_00002"]


def test_bags_of_another_contract_are_refused(tmp_path):
    """A folder that holds bags of another contract is named, with the difference."""
    record_demonstrations(STATE, tmp_path, 1)
    limited = Contract.from_text(STATE.text.replace("lead: 0.05", "lead: 0.06"))
    assert record_demonstrations(limited, tmp_path, 1).skipped == 1
    other = Contract.from_text(STATE.text.replace("binary, frame: base", "binary, frame: tool"))
    with pytest.raises(
        UserError, match=r"seed_00000: was recorded with another contract \(action.fields.2.frame"
    ):
        record_demonstrations(other, tmp_path, 1)


def test_evaluation_seeds_are_never_demonstrated(tmp_path):
    """Seeds from 10000 on are for evaluation."""
    with pytest.raises(UserError, match="seeds 9999 to 10000 are not all training seeds"):
        record_demonstrations(STATE, tmp_path, 2, first_seed=9999)


def test_a_contract_of_another_robot_is_refused(tmp_path):
    """The message says what the simulator cannot be."""
    with pytest.raises(UserError, match="a field of the action names no state"):
        record_demonstrations(Contract.load("example_arm"), tmp_path, 1)
