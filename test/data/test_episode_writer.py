"""One recorded episode, and what is said of it."""

import errno
import os
import resource
import shutil
import signal

import numpy as np
import pytest

from diffusion_policy_ros.data.bags import message_types, open_bag, serialize
from diffusion_policy_ros.data.episode_writer import (
    EpisodeWriter,
    TopicReport,
    new_episode,
)
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import stamp_ns
from diffusion_policy_ros.sim.messages import command_message

COMMAND = "trajectory_msgs/msg/JointTrajectory"
PLAIN = "std_msgs/msg/Float64MultiArray"
TOPICS = {"/command": COMMAND, "/plain": PLAIN}
MS = 1_000_000


def command(stamp_ns: int) -> bytes:
    """A command's bytes."""
    message = command_message(np.zeros(7), stamp_ns, list("abcdefg"), message_types).message
    return serialize(COMMAND, message)


def plain() -> bytes:
    """A message without a header."""
    layout = message_types("std_msgs/msg/MultiArrayLayout")(dim=[], data_offset=0)
    return serialize(PLAIN, message_types(PLAIN)(layout=layout, data=np.zeros(3)))


@pytest.fixture
def writer(tmp_path):
    """An episode in `tmp_path`."""
    return EpisodeWriter(new_episode(tmp_path, TOPICS, {"contract": "text"}), ["/command"])


def test_numbers_go_on(tmp_path):
    """Numbers are never used twice, whatever lies in the folder."""
    (tmp_path / "episode_0007").mkdir()
    (tmp_path / "notes.txt").touch()
    names = [new_episode(tmp_path, TOPICS, {}).path.name for _ in range(2)]
    assert names == ["episode_0008", "episode_0009"]


def test_commands_with_zero_stamps_have_the_rate_that_they_came_at(writer):
    """As clients of trajectory controllers publish them: not "20 at 0.0 Hz"."""
    for i in range(1, 21):
        writer.put("/command", i * 50 * MS, command(0))
    assert "/command: 20 at 20.0 Hz" in str(writer.keep({}))


def test_what_was_put_is_kept(writer):
    """Messages come back in their order, with what was noted at start and end."""
    stamps = [i * 50 * MS for i in range(1, 41)]
    for stamp in stamps:
        writer.put("/command", stamp + 3 * MS, command(stamp))
    report = writer.keep({"success": "true"})
    bag = open_bag(report.path)
    assert [stamp_ns(message.msg) for message in bag.messages()] == stamps
    assert bag.metadata["contract"] == "text" and bag.metadata["success"] == "true"
    assert (report.fault, report.lost) == ("", 0)


def test_report_tells_rates_gaps_and_silence(writer):
    """Of stamps where there are some, of arrivals where not; a silent topic stands out."""
    for i in [*range(1, 11), *range(15, 22)]:
        writer.put("/command", 10**15 + i, command(i * 100 * MS))
    report = writer.keep()
    assert len(report.topics["/command"].times_ns) == 17
    assert report.topics["/command"].rate_hz == pytest.approx(8.0)
    assert report.topics["/command"].gaps_s == pytest.approx([0.5])
    assert str(report) == (
        f"{report.path}: /command: 17 at 8.0 Hz, 1 gaps up to 0.500 s; /plain: NOTHING arrived"
    )


def test_messages_without_a_header_are_timed_by_arrival(writer):
    """Their times are the log times."""
    for i in range(5):
        writer.put("/plain", 10**15 + i * 20 * MS, plain())
    assert writer.keep().topics["/plain"].rate_hz == pytest.approx(50.0)


@pytest.mark.parametrize("times", [[], [5], [5, 5]])
def test_no_rate_of_too_little(times):
    """Fewer than two instants have no rate and no gaps."""
    report = TopicReport(times)
    assert report.rate_hz == 0.0 and report.gaps_s == []


def test_discarding_removes_the_bag(writer, tmp_path):
    """Nothing is left of a discarded episode."""
    writer.put("/command", 1, command(1))
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_was_written(writer):
    """When no more can be written it says why, and the bag reads up to its last whole message."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        for i in range(1, 400):
            writer.put("/command", i, command(i))
        report = writer.keep({"success": "true"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert report.fault == "cannot write (File too large)"
    assert "ended early: cannot write" in str(report)
    bag = open_bag(report.path)
    assert 20 < bag.topics["/command"][1] <= len(report.topics["/command"].times_ns) + 1
    assert bag.metadata["contract"] == "text"


@pytest.mark.parametrize("damage", [0, 3, 9])
def test_what_cannot_be_read_is_written_as_it_is_and_counted(writer, damage):
    """One damaged message among many costs nothing but itself, and is told."""
    for i in range(1, 101):
        data = command(i * 50 * MS)
        writer.put("/command", i * 50 * MS, data[:damage] if i == 11 else data)
    report = writer.keep({"success": "true"})
    assert (report.fault, len(report.topics["/command"].times_ns)) == ("", 99)
    assert "/command: 99 at " in str(report) and "1 UNREADABLE" in str(report)
    bag = open_bag(report.path)
    assert bag.topics["/command"][1] == 100 and bag.metadata["success"] == "true"


def test_whatever_the_writing_raises_is_told_and_what_was_written_is_kept(writer, monkeypatch):
    """The episode is no success then, whatever it was to be."""
    write, count = writer._bag.write, [0]

    def failing(*entry):
        count[0] += 1
        if count[0] > 5:
            raise ValueError("no such channel")
        write(*entry)

    monkeypatch.setattr(writer._bag, "write", failing)
    for i in range(1, 20):
        writer.put("/command", i, command(i))
    report = writer.keep({"success": "true"})
    assert report.fault == "cannot write (ValueError('no such channel'))"
    bag = open_bag(report.path)
    assert bag.topics["/command"][1] == 5
    assert bag.metadata["success"] == "false" and "no such channel" in bag.metadata["failure"]


def test_a_disk_that_does_not_keep_up_loses_messages_loudly(writer, monkeypatch):
    """What does not fit into memory is lost, counted and named."""
    monkeypatch.setattr("diffusion_policy_ros.data.episode_writer.WAITING_BYTES", 10)
    writer.put("/command", 1, command(1))
    report = writer.keep()
    assert report.lost == 1 and "1 messages LOST" in str(report)


def test_what_somebody_has_removed_meanwhile_is_discarded(writer):
    """The recorder outlives it."""
    shutil.rmtree(writer.path)
    writer.discard()
    assert not writer.path.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A file in the way is one line, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/bags: cannot record: Not a directory"):
        new_episode(tmp_path / "file" / "bags", TOPICS, {})


def test_what_ends_before_the_others_has_died_but_what_was_latched_has_not(writer):
    """A stream of 20 Hz falls silent; a handful of latched messages come at the start alone."""
    for i in range(60):
        if i < 20:
            writer.put("/command", i * 50 * MS, command(i * 50 * MS + 1))
        writer.put("/plain", i * 50 * MS, plain())
    report = writer.keep()
    assert report.died == {"/command": pytest.approx(2.0)}
    assert "/command: 20 at 20.0 Hz, then SILENT for the last 2.0 s" in str(report)
    latched = TopicReport(list(range(8)), last_ns=8)
    assert latched.silent_s(10**10) == 0.0


def test_an_episode_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    """On a full disk: the next one has its number, and no conversion meets an empty bag."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mcap.writer.Writer.start", full)
        with pytest.raises(UserError, match="cannot record: No space left on device"):
            new_episode(tmp_path, TOPICS, {})
    assert not list(tmp_path.iterdir())
