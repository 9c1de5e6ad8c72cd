"""What looks odd in a dataset, and the page that shows its episodes."""

import re

import numpy as np
import pytest

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.oddities import oddities, spans
from diffusion_policy_ros.data.store import Recording, adding

CONTRACT = Contract.from_text("""
name: drawn
rate_hz: 10
anchor: camera
observations:
  camera: {topic: /camera, type: sensor_msgs/msg/Image, shape: [12, 16, 3], resize: none}
  mono: {topic: /mono, type: sensor_msgs/msg/Image, encoding: mono8, shape: [12, 8, 1]}
  position: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  orientation: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
action:
  fields:
    - {name: move, kind: position}
    - {name: grip, kind: binary}
  record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [4]}
""")


def episode(seed, frames=40):
    """A smooth way with a turn that changes its sign, as drivers do."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, frames)[:, None]
    position = (t * rng.uniform(0.5, 1, 3) + 0.1 * np.sin(6 * t + rng.uniform(0, 6, 3))).astype(
        "f4"
    )
    turn = np.concatenate([np.sin(t / 9), 0 * t, 0 * t, np.cos(t / 9)], axis=1).astype("f4")
    turn[frames // 2 :] *= -1
    return {
        "camera": rng.integers(0, 256, (frames, 12, 16, 3), dtype=np.uint8),
        "mono": rng.integers(0, 256, (frames, 12, 8, 1), dtype=np.uint8),
        "position": position,
        "orientation": turn,
        "action": np.concatenate([position + 0.02, np.sign(t - 0.5)], 1).astype("f4"),
    }


def write(folder, changed):
    """Eight episodes, some of them changed: number → arrays."""
    with adding(folder, CONTRACT) as new:
        for number in range(8):
            arrays = changed.get(number, episode(number))
            report = new.add(Recording(f"demo_{number}", arrays, hash=f"{number:016d}"))
            assert report.status == "kept"
    return folder


def jumping():
    """A frame far away in the midst."""
    arrays = episode(1)
    arrays["position"][17] += 3
    return arrays


def idle():
    """Two seconds in which nothing moves."""
    arrays = episode(2)
    frames = np.concatenate([np.arange(6), np.full(20, 5), np.arange(6, 20)])
    return {key: values[frames] for key, values in arrays.items()}


def saturated():
    """A command that is cut off at what is the largest of all."""
    arrays = episode(3)
    arrays["action"][10:30, 1] = 5.0
    return arrays


def test_ordinary_episodes_have_nothing_odd(tmp_path):
    """Also where a quaternion changes its sign, and a gripper is always open or closed."""
    dataset = Dataset(write(tmp_path / "data", {}))
    assert oddities(dataset, range(8)) == []


@pytest.mark.parametrize(
    ("number", "arrays", "kind", "text"),
    [
        (1, jumping(), "jump", "position jumps by .* at frame 17"),
        (2, idle(), "idle", "still for 2.0 s from frame 5"),
        (3, saturated(), "saturation", "is at its largest or smallest value in 50%"),
        (4, episode(4, 150), "length", "150 frames, 3.7 times longer"),
        (5, episode(5, 9), "length", "9 frames, 4.4 times shorter"),
        (6, episode(0), "duplicate", "the same as episode 0"),
    ],
)
def test_what_is_odd_is_named_with_its_episode(tmp_path, number, arrays, kind, text, capsys):
    """By the verb and on the page, which has a strip and a plot of every episode."""
    folder = write(tmp_path / "data", {number: arrays})
    assert main(["data", "show", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out.splitlines()[:-1]
    assert {line.split()[0] for line in said} == {kind}
    assert any(re.search(f"{number} \\(demo_{number}\\): .*{text}", line) for line in said), said
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 8
    assert f"<td>{kind}</td>" in page
    assert "http" not in page.replace("http-equiv", "")


def test_an_arm_that_rests_where_it_was_measured_is_not_saturated(tmp_path):
    """Its actions are its next states: no command was cut off."""
    text = CONTRACT.text.replace("kind: position}", "kind: position, state: position}").replace(
        "kind: binary}", "kind: scalar, state: width}"
    )
    head, _, _ = text.partition("  record:")
    width = "  width: {topic: /width, type: std_msgs/msg/Float64MultiArray, shape: [1]}\naction:"
    contract = Contract.from_text(f"{head.replace('action:', width)}  record: next_state\n")
    with adding(tmp_path / "data", contract) as new:
        for number in range(4):
            arrays = saturated() if number == 3 else episode(number)
            arrays["width"] = arrays["action"][:, 3:]
            new.add(Recording(f"demo_{number}", arrays, hash=f"{number:016d}"))
    assert oddities(Dataset(tmp_path / "data"), range(4)) == []


def test_numbers_on_the_page_are_those_that_verbs_take(tmp_path, capsys):
    """Also after some were dropped; few are drawn when few are asked for, odd ones first."""
    folder = write(tmp_path / "data", {6: episode(3)})
    assert main(["data", "drop", str(folder), "--episodes", "1", "2"]) == 0
    assert main(["data", "show", str(folder), "--most", "2"]) == 0
    said = capsys.readouterr().out
    assert "duplicate  6 (demo_6): the same as episode 3" in said
    page = (tmp_path / "data.html").read_text()
    assert page.count("data:image/jpeg") == 2
    assert "2 of 6 episodes are drawn" in page
    assert "6: demo_6" in page and "1: demo_1" not in page


@pytest.mark.parametrize("out", ["data/dataset.yaml", "bag.mcap"])
def test_a_page_at_the_wrong_place_is_refused(tmp_path, out, capsys):
    """Before anything is read; neither an index nor a bag is written over."""
    folder = write(tmp_path / "data", {})
    before = (folder / "dataset.yaml").read_bytes()
    assert main(["data", "show", str(folder), "--out", str(tmp_path / out)]) == 2
    assert "end the name in .html" in capsys.readouterr().err
    assert (folder / "dataset.yaml").read_bytes() == before and not (
        tmp_path / "bag.mcap"
    ).exists()


def test_names_that_are_no_text_and_wide_pictures_are_shown(tmp_path, capsys):
    """A strip of wide pictures stays within what a jpeg can hold."""
    contract = Contract.from_text(CONTRACT.text.replace("[12, 16, 3]", "[4, 900, 3]"))
    camera = np.zeros((40, 4, 900, 3), np.uint8)
    with adding(tmp_path / "data", contract) as new:
        new.add(Recording("\udce4rger", {**episode(0), "camera": camera}))
    assert main(["data", "show", str(tmp_path / "data")]) == 0
    assert main(["data", "list", str(tmp_path / "data")]) == 0
    assert "\\udce4rger" in (tmp_path / "data.html").read_text()


def test_the_largest_numbers_that_there_are_jump_and_no_more(tmp_path, capsys, recwarn):
    """Their differences are larger than a float32 can be."""
    arrays = episode(3)
    arrays["position"][20:22] = [[3e38] * 3, [-3e38] * 3]
    folder = write(tmp_path / "data", {3: arrays})
    assert main(["data", "show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "jump       3 (demo_3): position jumps by 1.04e+39 at frame 21" in said
    assert not [one for one in recwarn if issubclass(one.category, RuntimeWarning)]


def test_spans_are_found_at_both_ends():
    """First place, and the one after the last."""
    assert spans(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert spans(np.zeros(3, bool)) == []
