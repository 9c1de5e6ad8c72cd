"""Recordings that were cut off are read up to their last whole message."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st
from made_bags import CONTRACT, POSE, demonstration, make_bag, pose
from mcap.writer import CompressionType, Writer as McapWriter

from diffusion_policy_ros.data.bags import open_bag, serialize
from diffusion_policy_ros.errors import UserError

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from made_bags import CONTRACT, demonstration
from diffusion_policy_ros.data.bags import BagWriter, serialize
types = CONTRACT.recorded_topics
writer = BagWriter(Path(sys.argv[1]), types, {"contract": CONTRACT.text})
for number, (topic, ns, msg) in enumerate(demonstration(frames=100000)):
    writer.write(topic, ns, serialize(types[topic], msg))
    print(number + 1, flush=True)
"""


def cut(path, size):
    """Leave a file's first bytes and no metadata.yaml, as a full disk or a kill does."""
    (path / "metadata.yaml").unlink(missing_ok=True)
    os.truncate(next(path.glob("*.mcap")), size)
    return path


def times(bag):
    """Its messages' topics and log times."""
    return [(topic, log_ns) for topic, log_ns, _ in bag.messages()]


def test_a_killed_writer_leaves_every_message_that_it_wrote(tmp_path):
    """SIGKILL between any two instructions: what write() returned for is there, and whole."""
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "bag"), here]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 500:
            break
    process.send_signal(signal.SIGKILL)
    written = [int(line)] + [int(rest) for rest in process.stdout.read().split()]
    process.wait(timeout=180)
    assert not (tmp_path / "bag" / "metadata.yaml").exists()
    bag = open_bag(tmp_path / "bag")
    assert bag.metadata["contract"] == CONTRACT.text
    assert bag.notes == ["bag_0.mcap was cut off; read up to its last whole message"]
    found = list(bag.messages())
    assert written[-1] <= len(found) <= written[-1] + 1
    for (topic, ns, msg), (wanted, at, original) in zip(
        found, demonstration(100000), strict=False
    ):
        assert (topic, ns, bytes(msg._raw)) == (
            wanted, at, serialize(CONTRACT.recorded_topics[wanted], original),
        )  # fmt: skip


def test_every_cut_of_our_bag_gives_the_messages_before_it(tmp_path):
    """Cut anywhere, a bag gives all whole messages, or says that there is none."""
    path = make_bag(tmp_path / "bag", frames=3)
    whole = times(open_bag(path))
    size = next(path.glob("*.mcap")).stat().st_size
    counts = []
    for end in range(size - 1, 7, -5):
        try:
            bag = open_bag(cut(path, end))
        except UserError as error:
            assert "cut off" in str(error)
            counts.append(0)
            continue
        found = times(bag)
        assert found == whole[: len(found)]
        assert bag.notes
        assert sum(count for _, count in bag.topics.values()) == len(found)
        counts.append(len(found))
    assert counts[0] == len(whole)
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == set(range(len(whole) + 1))


@pytest.mark.parametrize("chunk_size", [None, 1, 2000])
@pytest.mark.parametrize("compression", list(CompressionType))
def test_cut_bags_of_other_recorders_give_their_whole_messages(tmp_path, compression, chunk_size):
    """No chunks, small ones, compressed ones: never an error of ours or a wrong message."""
    messages = [(i, serialize(POSE, pose(i, (i, 0, 0)))) for i in range(40)]
    path = tmp_path / "bag"
    path.mkdir()
    with (path / "bag.mcap").open("wb") as stream:
        writer = McapWriter(
            stream, compression=compression, use_chunking=chunk_size is not None,
            chunk_size=chunk_size or 0,
        )  # fmt: skip
        writer.start("ros2", "test")
        channel = writer.register_channel(
            "/pose", "cdr", writer.register_schema(POSE, "ros2msg", b"")
        )
        for ns, data in messages:
            writer.add_message(channel, ns, data, ns)
        writer.finish()
    size = (path / "bag.mcap").stat().st_size
    most = 0
    for end in range(size - 1, 20, -7):
        try:
            bag = open_bag(cut(path, end))
            found = [(ns, bytes(msg._raw)) for _, ns, msg in bag.messages()]
        except UserError:
            continue
        assert found == messages[: len(found)]
        most = max(most, len(found))
    assert most == len(messages)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The bytes of a bag of ours, and of one with compressed chunks."""
    folder = tmp_path_factory.mktemp("originals")
    packed = folder / "packed.mcap"
    with packed.open("wb") as stream:
        writer = McapWriter(stream, chunk_size=300, compression=CompressionType.ZSTD)
        writer.start("ros2", "test")
        channel = writer.register_channel(
            "/p", "cdr", writer.register_schema(POSE, "ros2msg", b"")
        )
        for i in range(20):
            writer.add_message(channel, i, serialize(POSE, pose(i, (i, 0, 0))), i)
        writer.finish()
    ours = next(make_bag(folder / "bag", frames=3).glob("*.mcap"))
    return ours.read_bytes(), packed.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_a_users_error_or_unseen(originals, tmp_path_factory, data):
    """Whatever a bad disk does to a file: messages, or one line that says it is damaged."""
    content = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "flipped.mcap"
    file.write_bytes(content)
    try:
        bag = open_bag(file)
        for _, _, msg in bag.messages():
            _ = msg.header
    except UserError as error:
        assert str(file) in str(error) or error.cure


def test_a_tail_of_zeros_is_a_cut(tmp_path):
    """After a power cut, some file systems leave zeros where data was to come."""
    path = make_bag(tmp_path / "bag", frames=3)
    file = next(path.glob("*.mcap"))
    cut(path, file.stat().st_size // 2)
    before = times(open_bag(path))
    with file.open("ab") as stream:
        stream.write(b"\0" * 5000)
    assert times(open_bag(path)) == before
