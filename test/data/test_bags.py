"""Recordings: what we write, others read; what others write, we read."""

import shutil
import sqlite3
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings, strategies as st
from made_bags import (
    IMAGE,
    JOINTS,
    POSE,
    START,
    demonstration,
    image,
    joint_state,
    make_bag,
    plain,
    pose,
)
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer as McapWriter
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import (
    CompressionFormat,
    CompressionMode,
    Reader,
    StoragePlugin,
    Writer as ForeignWriter,
)
from rosbags.typesys import Stores, get_typestore

from diffusion_policy_ros.data.bags import BagWriter, message_types, open_bag, serialize
from diffusion_policy_ros.errors import UserError

NO_NULL = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TYPES = {"/camera": IMAGE, "/pose": POSE, "/command": "trajectory_msgs/msg/JointTrajectory"}


def recorded(bag):
    """A bag's messages by topic, time and bytes."""
    return [(topic, log_ns, bytes(msg._raw)) for topic, log_ns, msg in bag.messages()]


def raw_demonstration(**how):
    """A demonstration as (topic, log time, bytes)."""
    return [(topic, ns, serialize(TYPES[topic], msg)) for topic, ns, msg in demonstration(**how)]


def write_foreign(path, plugin, mode=None, parts=1):
    """Write a demonstration with rosbags' own writer; several files if asked for."""
    messages = raw_demonstration()
    writer = ForeignWriter(path, version=9, storage_plugin=plugin)
    if mode is not None:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        store = get_typestore(Stores.ROS2_JAZZY)
        connections = {
            t: writer.add_connection(t, kind, typestore=store) for t, kind in TYPES.items()
        }
        for topic, ns, data in messages:
            writer.write(connections[topic], ns, data)
    return messages


# What others read


def test_rosbags_reads_every_message_of_our_bag(tmp_path):
    """Rosbags' reader finds topics, types, definitions and every message unchanged."""
    path = make_bag(tmp_path / "bag")
    with AnyReader([path]) as reader:
        found = [(c.topic, ns, bytes(raw)) for c, ns, raw in reader.messages()]
        connection, _, raw = next(
            reader.messages([c for c in reader.connections if c.topic == "/pose"])
        )
        assert reader.deserialize(raw, connection.msgtype).pose.position.z == 0.2
    assert found == raw_demonstration()


def test_mcap_reads_our_bag_and_its_checksums_hold(tmp_path):
    """The reference reader validates every checksum, and finds statistics and index."""
    path = make_bag(tmp_path / "bag", metadata={"contract": "a: 1"})
    file = path / "bag_0.mcap"
    with file.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        found = [(c.topic, m.log_time, m.data) for _, c, m in reader.iter_messages()]
        assert reader.get_header().profile == "ros2"
        metadata = {record.name: record.metadata for record in reader.iter_metadata()}
    assert found == raw_demonstration()
    assert summary.statistics.message_count == len(found) == len(summary.chunk_indexes)
    assert {s.name: s.encoding for s in summary.schemas.values()} == dict.fromkeys(
        TYPES.values(), "ros2msg"
    )
    assert {c.message_encoding for c in summary.channels.values()} == {"cdr"}
    assert metadata["diffusion_policy_ros"] == {"contract": "a: 1"}
    assert yaml.safe_load(metadata["rosbag2"]["serialized_metadata"])["message_count"] == len(
        found
    )
    footer = file.read_bytes()[-37:-8]
    start = int.from_bytes(footer[9:17], "little")
    assert zlib.crc32(file.read_bytes()[start:-12]) == int.from_bytes(footer[25:29], "little")


def test_the_definition_holds_all_types_that_a_type_consists_of(tmp_path):
    """A schema concatenates nested definitions as rosbag2 does, for Foxglove to decode."""
    path = make_bag(tmp_path / "bag")
    with (path / "bag_0.mcap").open("rb") as stream:
        schemas = {
            s.name: s.data.decode() for s in make_reader(stream).get_summary().schemas.values()
        }
    parts = schemas[POSE].split("=" * 80 + "\n")
    assert parts[0] == "std_msgs/Header header\ngeometry_msgs/Pose pose\n"
    assert sorted(part.split("\n")[0] for part in parts[1:]) == [
        "MSG: builtin_interfaces/Time", "MSG: geometry_msgs/Point", "MSG: geometry_msgs/Pose",
        "MSG: geometry_msgs/Quaternion", "MSG: std_msgs/Header",
    ]  # fmt: skip


def test_metadata_has_the_keys_of_rosbag2_version_8(tmp_path):
    """It has what rosbag2 requires, with QoS as text, which releases before Jazzy need."""
    path = make_bag(tmp_path / "bag", metadata={"contract": "a: 1\nb: 2\n"}, frames=4)
    info = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["version"] == 8
    assert info["storage_identifier"] == "mcap"
    assert info["starting_time"] == {"nanoseconds_since_epoch": START + 1_000_000}
    assert info["duration"] == {"nanoseconds": 3 * 50_000_000 + 4_000_000}
    assert info["message_count"] == 12
    assert info["compression_format"] == info["compression_mode"] == info["ros_distro"] == ""
    assert info["relative_file_paths"] == ["bag_0.mcap"]
    assert info["files"][0].keys() == {"path", "starting_time", "duration", "message_count"}
    assert info["custom_data"] == {"contract": "a: 1\nb: 2\n"}
    for entry in info["topics_with_message_count"]:
        topic = entry["topic_metadata"]
        assert (topic["type"], entry["message_count"]) == (TYPES[topic["name"]], 4)
        assert topic["serialization_format"] == "cdr"
        assert topic["type_description_hash"].startswith("RIHS01_")
        qos = yaml.safe_load(topic["offered_qos_profiles"])
        assert isinstance(topic["offered_qos_profiles"], str)
        assert (qos[0]["reliability"], qos[0]["durability"]) == (1, 2)
    with Reader(path) as reader:
        assert reader.message_count == 12


# What we read


def test_our_own_bag_reads_back(tmp_path):
    """Topics, counts, metadata and messages come back in order of log time."""
    bag = open_bag(make_bag(tmp_path / "bag", metadata={"contract": "x", "success": "true"}))
    assert bag.topics == {topic: (kind, 12) for topic, kind in sorted(TYPES.items())}
    assert bag.metadata == {"contract": "x", "success": "true"}
    assert bag.notes == []
    assert recorded(bag) == raw_demonstration()


def test_only_the_wanted_topics_are_read(tmp_path):
    """A choice of topics leaves the others out."""
    bag = open_bag(make_bag(tmp_path / "bag"))
    assert {topic for topic, _, _ in bag.messages(["/pose", "/nothing"])} == {"/pose"}
    assert list(bag.messages([])) == []


@pytest.mark.parametrize(
    "mode", [None, CompressionMode.FILE, CompressionMode.MESSAGE, CompressionMode.STORAGE]
)
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags_of_another_writer_read_the_same(tmp_path, plugin, mode):
    """MCAP and SQLite, plain and compressed in each way, give the same messages."""
    if plugin == StoragePlugin.SQLITE3 and mode == CompressionMode.STORAGE:
        pytest.skip("SQLite has no compression of its own")
    messages = write_foreign(tmp_path / "bag", plugin, mode)
    bag = open_bag(tmp_path / "bag")
    assert recorded(bag) == messages
    assert bag.topics["/pose"] == (POSE, 12)
    (tmp_path / "bag" / "metadata.yaml").unlink()
    assert recorded(open_bag(tmp_path / "bag")) == messages


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_single_file_is_a_bag(tmp_path, plugin):
    """An .mcap or .db3 file without its directory opens."""
    messages = write_foreign(tmp_path / "bag", plugin)
    file = next(f for f in (tmp_path / "bag").iterdir() if f.suffix in (".mcap", ".db3"))
    assert recorded(open_bag(file)) == messages


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_split_files_are_one_recording(tmp_path, plugin):
    """Files of a split bag are merged by log time, each topic counted over all."""
    messages = write_foreign(tmp_path / "one", plugin)
    (tmp_path / "split").mkdir()
    names = []
    for number in range(2):
        part = tmp_path / f"part{number}"
        write_foreign(part, plugin)
        file = next(f for f in part.iterdir() if f.suffix in (".mcap", ".db3"))
        names.append(f"split_{number}{file.suffix}")
        file.rename(tmp_path / "split" / names[-1])
    info = {"rosbag2_bagfile_information": {"version": 9, "relative_file_paths": names}}
    (tmp_path / "split" / "metadata.yaml").write_text(yaml.safe_dump(info))
    bag = open_bag(tmp_path / "split")
    assert bag.topics["/camera"] == (IMAGE, 24)
    assert sorted(recorded(bag)) == sorted(messages * 2)
    times = [log_ns for _, log_ns, _ in bag.messages()]
    assert times == sorted(times)


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("compression", list(CompressionType))
def test_messages_come_in_order_of_log_time_however_they_were_written(
    tmp_path, chunking, compression
):
    """Chunks may overlap in time; equal times keep the order of writing."""
    rng = np.random.default_rng(0)
    times = rng.integers(0, 200, 300).tolist()
    file = tmp_path / "mixed.mcap"
    data = serialize(JOINTS, joint_state(0, ["a"], [1.0]))
    with file.open("wb") as stream:
        writer = McapWriter(
            stream, chunk_size=1000, use_chunking=chunking, compression=compression
        )
        writer.start("ros2", "test")
        schema = writer.register_schema(JOINTS, "ros2msg", b"float64 x")
        channels = [writer.register_channel(f"/t{n}", "cdr", schema) for n in range(2)]
        for place, time in enumerate(times):
            writer.add_message(channels[place % 2], time, data + place.to_bytes(2, "little"), time)
        writer.finish()
    found = [
        (ns, int.from_bytes(bytes(msg._raw)[-2:], "little"))
        for _, ns, msg in open_bag(file).messages()
    ]
    assert found == sorted(zip(times, range(300), strict=True))


# Messages


@settings(max_examples=50, deadline=None)
@given(
    st.integers(-(2**31), 2**31 - 1), st.integers(0, 10**9 - 1), st.text(max_size=9),
    st.lists(st.text(NO_NULL, max_size=9), max_size=5),
    st.booleans(),
)  # fmt: skip
def test_the_stamp_is_read_without_decoding(sec, nanosec, frame_id, names, little):
    """The header read from the bytes is the decoded one, in either byte order."""
    from diffusion_policy_ros.data.definitions import maker
    from diffusion_policy_ros.data.mcap_file import Schema

    msg = joint_state(0, names, np.arange(len(names)))
    msg.header.stamp.sec, msg.header.stamp.nanosec = sec, nanosec
    msg.header.frame_id = frame_id = frame_id.replace("\0", "").encode("utf-8", "ignore").decode()
    store = get_typestore(Stores.ROS2_JAZZY)
    raw = memoryview(bytes(store.serialize_cdr(msg, JOINTS, little_endian=little)))
    found = maker(JOINTS, Schema("", "", ""))(raw)
    assert (found.header.stamp.sec, found.header.stamp.nanosec) == (sec, nanosec)
    assert found.header.frame_id == frame_id
    assert "position" not in vars(found)
    assert (found.name, found.position.tolist()) == (names, list(range(len(names))))
    with pytest.raises(AttributeError):
        _ = found.no_such_field


def test_a_recorded_message_has_every_field_of_the_original(tmp_path):
    """What comes out of a bag equals what went in, field by field."""
    bag = open_bag(make_bag(tmp_path / "bag", frames=2))
    for (topic, _, found), (_, _, msg) in zip(
        bag.messages(), demonstration(frames=2), strict=True
    ):
        wanted = {k: plain(v) for k, v in vars(msg).items() if k not in ("header", "__msgtype__")}
        assert {name: plain(getattr(found, name)) for name in wanted} == wanted, topic


def test_the_bags_own_definition_decodes_its_messages(tmp_path):
    """A type that ROS 2 Jazzy does not have is read as the recording defines it."""
    with (tmp_path / "own.mcap").open("wb") as stream:
        writer = McapWriter(stream)
        writer.start("ros2", "test")
        schema = writer.register_schema(
            "my_msgs/msg/Touch", "ros2msg", b"uint32 where\nbool firm\n"
        )
        channel = writer.register_channel("/touch", "cdr", schema)
        writer.add_message(channel, 5, b"\0\1\0\0" + (7).to_bytes(4, "little") + b"\1", 5)
        writer.finish()
    ((topic, log_ns, msg),) = open_bag(tmp_path / "own.mcap").messages()
    assert (topic, log_ns, msg.where, msg.firm, msg.header) == ("/touch", 5, 7, True, None)


def test_bytes_that_are_no_message_are_a_users_error(tmp_path):
    """A message of the wrong bytes says so when it is looked into."""
    with BagWriter(tmp_path / "bag", {"/pose": POSE}) as writer:
        writer.write("/pose", 1, b"\0\1\0\0" + b"\0" * 20)
        writer.write("/pose", 2, b"\0\1")
    first, second = (msg for _, _, msg in open_bag(tmp_path / "bag").messages())
    with pytest.raises(UserError, match="24 bytes are no geometry_msgs/msg/PoseStamped"):
        _ = first.pose
    with pytest.raises(UserError, match="2 bytes has no header"):
        _ = second.header


# Mistakes


def test_the_writer_refuses_unknown_types_and_existing_directories(tmp_path):
    """Nothing is made for a type that no definition is known of; nothing is overwritten."""
    with pytest.raises(UserError, match="'my_msgs/msg/Touch' is not known"):
        BagWriter(tmp_path / "bag", {"/touch": "my_msgs/msg/Touch"})
    assert not (tmp_path / "bag").exists()
    make_bag(tmp_path / "bag", frames=2)
    with pytest.raises(UserError, match="there is something already"):
        BagWriter(tmp_path / "bag", TYPES)
    with pytest.raises(UserError, match="did you mean 'sensor_msgs/msg/Image'"):
        message_types("sensor_msgs/msg/Imag")


def test_closing_adds_what_was_only_known_then(tmp_path):
    """The verdict is noted at the end; closing twice does nothing; a discarded bag is gone."""
    writer = BagWriter(tmp_path / "bag", {"/pose": POSE}, {"contract": "c"})
    writer.write("/pose", 1, serialize(POSE, pose(1, (0, 0, 0))))
    writer.close({"success": "false"})
    writer.close()
    assert open_bag(tmp_path / "bag").metadata == {"contract": "c", "success": "false"}
    (tmp_path / "bag" / "metadata.yaml").unlink()
    assert open_bag(tmp_path / "bag").metadata == {"contract": "c", "success": "false"}
    writer = BagWriter(tmp_path / "other", {"/pose": POSE})
    writer.discard()
    assert not (tmp_path / "other").exists()


def write(path, data):
    """Write a file below directories that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("bag/bag_0.mcap", b"", "the file is empty; record it again"),
        ("bag/bag_0.db3", b"", "the file is empty; record it again"),
        ("bag/bag_0.mcap", b"#ROSBAG V2.0\n" + b"x" * 99, "this is a ROS 1 bag; convert it with"),
        ("bag/old.bag", b"#ROSBAG V2.0\n", "this holds a ROS 1 bag; convert it with"),
        ("bag/bag_0.mcap", b"x" * 99, "this is no MCAP file"),
        ("bag/bag_0.db3", b"x" * 99, "this is no SQLite file"),
        ("bag/bag_0.db3", b"SQLite format 3\0" + b"x" * 999, "no whole rosbag2 database"),
        ("bag/bag_0.mcap", b"\x89MCAP0\r\n", "nothing whole was recorded before it was cut off"),
        ("bag/bag_0.mcap.zstd", b"x" * 99, "cannot be decompressed"),
        ("bag/notes.txt", b"x", "there is no bag in it"),
    ],
)
def test_what_is_no_bag_is_refused_in_one_line(tmp_path, name, data, match):
    """Missing, empty and foreign files are named, with a cure."""
    file = write(tmp_path / name, data)
    with pytest.raises(UserError, match=match) as caught:
        open_bag(file.parent)
    assert "\n" not in str(caught.value)
    assert caught.value.cure
    assert str(tmp_path) in str(caught.value)


def test_a_missing_bag_and_a_missing_part_are_named(tmp_path):
    """The path that does not exist stands in the message."""
    with pytest.raises(UserError, match="no such bag"):
        open_bag(tmp_path / "nothing")
    path = make_bag(tmp_path / "bag")
    (path / "bag_0.mcap").unlink()
    with pytest.raises(UserError, match=r"its file bag_0\.mcap is missing"):
        open_bag(path)


def test_a_bag_without_messages_is_refused(tmp_path):
    """A recording that was stopped before anything came is empty, not an error of ours."""
    BagWriter(tmp_path / "bag", TYPES).close()
    with pytest.raises(UserError, match="the bag holds no messages; record it again"):
        open_bag(tmp_path / "bag")


def test_a_ros1_profile_is_refused(tmp_path):
    """MCAP files may hold ROS 1 messages; these are not read as if they were ROS 2's."""
    with (tmp_path / "one.mcap").open("wb") as stream:
        writer = McapWriter(stream)
        writer.start("ros1", "test")
        schema = writer.register_schema("sensor_msgs/Image", "ros1msg", b"uint32 x")
        writer.add_message(writer.register_channel("/x", "ros1", schema), 1, b"1234", 1)
        writer.finish()
    with pytest.raises(UserError, match="encoded as 'ros1' in profile 'ros1'"):
        open_bag(tmp_path / "one.mcap")


def test_a_flipped_bit_in_a_state_is_found(tmp_path):
    """Checksums of small chunks are verified: a damaged pose never becomes training data."""
    path = make_bag(tmp_path / "bag")
    file = path / "bag_0.mcap"
    data = bytearray(file.read_bytes())
    place = data.index(serialize(POSE, next(demonstration())[2])) + 60
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="a chunk whose checksum does not match"):
        list(open_bag(path).messages())


def test_a_message_that_cannot_be_decompressed_is_named(tmp_path):
    """Compressed message by message, a flipped byte stops at its message."""
    write_foreign(tmp_path / "bag", StoragePlugin.SQLITE3, CompressionMode.MESSAGE)
    file = next((tmp_path / "bag").glob("*.db3"))
    connection = sqlite3.connect(file)
    (data,) = connection.execute("SELECT data FROM messages ORDER BY id LIMIT 1").fetchone()
    broken = data[:6] + bytes([data[6] ^ 255]) + data[7:]
    connection.execute("UPDATE messages SET data = ? WHERE data = ?", (broken, data))
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="a message of /pose cannot be decompressed"):
        list(open_bag(tmp_path / "bag").messages())


def test_a_sqlite_log_beside_the_file_is_read(tmp_path):
    """A recorder that was killed leaves its last messages in a write-ahead log."""
    messages = write_foreign(tmp_path / "bag", StoragePlugin.SQLITE3)
    file = next((tmp_path / "bag").glob("*.db3"))
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=wal")
    connection.execute(
        "INSERT INTO messages(topic_id, timestamp, data) VALUES (1, 9999999999, x'00010000')"
    )
    connection.commit()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "bag", copy)
    connection.close()
    assert list(Path(copy).glob("*-wal"))
    assert sum(count for _, count in open_bag(copy).topics.values()) == len(messages) + 1


def test_an_images_pixels_are_a_view_into_the_file(tmp_path):
    """Reading an image copies nothing."""
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    with BagWriter(tmp_path / "bag", {"/camera": IMAGE}) as writer:
        writer.write("/camera", 1, serialize(IMAGE, image(1, pixels)))
    ((_, _, msg),) = open_bag(tmp_path / "bag").messages()
    data = np.frombuffer(msg.data, dtype=np.uint8)
    assert np.array_equal(data, pixels.ravel())
    assert not data.flags.owndata
    assert not data.flags.writeable


@pytest.mark.parametrize("change", ["data = NULL", "timestamp = 'soon'"])
def test_a_database_with_other_types_in_its_columns_is_damaged(tmp_path, change):
    """SQLite lets any column hold anything."""
    write_foreign(tmp_path / "bag", StoragePlugin.SQLITE3)
    connection = sqlite3.connect(next((tmp_path / "bag").glob("*.db3")))
    connection.execute("PRAGMA ignore_check_constraints = 1")
    connection.execute("CREATE TABLE new AS SELECT * FROM messages")
    connection.execute("DROP TABLE messages")
    connection.execute("ALTER TABLE new RENAME TO messages")
    connection.execute(f"UPDATE messages SET {change} WHERE id = 5")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match="no whole rosbag2 database"):
        list(open_bag(tmp_path / "bag").messages())


BOMB = "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "rosbag2_bagfile_information: {version: " + "1" * 5000 + "}",
        "rosbag2_bagfile_information: {relative_file_paths: 3, custom_data: [1]}",
        "rosbag2_bagfile_information: {starting_time: 2024-13-45}",
        f"a: &a [1, 1]\n{BOMB}rosbag2_bagfile_information: {{custom_data: {{contract: *h}}}}",
    ],
    ids=["long number", "other types", "no date", "bomb"],
)
def test_metadata_that_means_nothing_is_as_if_it_were_missing(tmp_path, text):
    """The messages are read all the same."""
    path = make_bag(tmp_path / "bag", metadata={"contract": "a: 1"})
    (path / "metadata.yaml").write_text(text)
    bag = open_bag(path)
    assert bag.topics["/pose"] == (POSE, 12) and bag.metadata == {"contract": "a: 1"}
