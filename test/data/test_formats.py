"""The table of foreign formats: what each can do, and what is missing without its extra."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.formats import FORMATS, format_of
from diffusion_policy_ros.data.formats.demonstrations import Column
from diffusion_policy_ros.data.formats.drafting import draft
from diffusion_policy_ros.data.formats.matching import match
from diffusion_policy_ros.errors import UserError


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_reads_or_writes(name):
    """And is imported without what only its files need."""
    module = format_of(name)
    reads = hasattr(module, "read") or hasattr(module, "import_robomimic")
    assert reads
    assert hasattr(module, "write") == (name != "zarr")


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("lerobot", "pyarrow", "lerobot"),
        ("robomimic", "h5py", "robomimic"),
        ("aloha", "h5py", "robomimic"),
    ],
)
def test_without_an_extra_one_line_says_what_is_missing(
    tmp_path, capsys, monkeypatch, name, missing, extra
):
    """Whatever is at the path."""
    monkeypatch.setitem(sys.modules, missing, None)
    words = [
        "import",
        name,
        str(tmp_path),
        "--contract",
        "mini_lift",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{missing} is not installed; pip install 'diffusion_policy_ros[{extra}]'" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("text", ["x", "3-", "-1", "1-999999999999", "0,,x", "7-3", ",", " "])
def test_numbers_that_are_none_are_refused(tmp_path, capsys, text):
    """Of episodes."""
    words = [
        "import",
        "lerobot",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
        f"--episodes={text}",
    ]
    assert main(words) == 2
    assert "write them as 0,3-7" in capsys.readouterr().err


def test_every_no_frame_is_refused(tmp_path, capsys):
    """Before anything is opened."""
    words = ["import", "zarr", str(tmp_path), "--out", str(tmp_path / "o"), "--every", "0"]
    assert main(words) == 2
    assert "0 is no number of frames; give 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "fits"),
    [
        ({"observation.qpos": Column((2,))}, True),  # of no type with stamps by itself
        ({"observation.images.0": Column((64, 64, 3), is_image=True)}, True),
        ({"observation.état": Column((2,))}, True),
        ({"observation.state": Column((2,)), "state": Column((2,))}, False),
        ({f"observation.images.{n}": Column((), is_image=True) for n in ("a", "a_rgb")}, False),
    ],
)
def test_drafts_pass_whatever_columns_are_called(columns, fits):
    """They have names of their own, and topics that are such; which is which may have to be said.

    So do fields of an action.
    """
    columns["action"] = Column((2,), names=("left.x", "left_x"))
    foreign = SimpleNamespace(where="thing", columns=columns, rate_hz=None)
    contract = Contract.from_text(draft(foreign))
    assert len(contract.observations) == len(columns) - 1
    assert [field.name for field in contract.action.fields] == ["left_x", "left_x_2"]
    said = ["action=action"]
    with nullcontext() if fits else pytest.raises(UserError, match="--map"):
        match(contract, columns, said)
