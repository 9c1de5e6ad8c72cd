"""Files of torch.save are read; what they name is neither looked up nor called."""

import builtins
import collections
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from made_ckpt import Reduced, Storage, archive, pickled, tensor

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.torch_file import StoredTensor, TorchFile

FOUR = np.arange(4, dtype=np.float32).tobytes()


def plain(file, value):
    """Content with its tensors read."""
    if isinstance(value, StoredTensor):
        return file.read(value)
    if isinstance(value, dict):
        return {key: plain(file, child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(file, child) for child in value]
    return value


@pytest.fixture
def saved(tmp_path):
    """A file of each type of numbers, views that share a storage, and plain data."""
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    content = {
        "tensors": collections.OrderedDict(
            base=base, turned=base.t(), part=base[1:3, ::2], none=torch.zeros(0, 3)
        ),
        "kinds": [torch.ones(3).to(kind) for kind in (torch.float64, torch.float16, torch.int64)],
        "parameter": torch.nn.Parameter(
            torch.randn(2, generator=torch.Generator().manual_seed(0))
        ),
        "more": [torch.tensor([True, False]), torch.tensor(3, dtype=torch.uint8)],
        "plain": [1, -(2**40), 1.5, "text", None, True, (1, 2, 3, 4), b"bytes", {"a": [1]}],
    }
    path = tmp_path / "saved.pt"
    torch.save(content, path)
    return path, content


def test_what_torch_saves_is_read(saved):
    """Views, types, parameters and plain data are what torch.load gives."""
    path, content = saved
    with TorchFile(path) as file:
        found = plain(file, file.content)
    for name, expected in content["tensors"].items():
        assert torch.equal(found["tensors"][name], expected)
    for theirs, expected in zip(
        [*found["kinds"], *found["more"], found["parameter"]],
        [*content["kinds"], *content["more"], content["parameter"].detach()],
        strict=True,
    ):
        assert theirs.dtype == expected.dtype and torch.equal(theirs, expected)
    assert found["plain"] == [[1, 2, 3, 4] if v == (1, 2, 3, 4) else v for v in content["plain"]]


HOSTILE = [
    Reduced(os.system, "touch {}"),
    Reduced(eval, "open({!r}, 'w')"),
    Reduced(builtins.exec, "open({!r}, 'w')"),
    Reduced(builtins.getattr, "a", "upper"),
    Reduced(__import__, "os"),
    Reduced(torch.load, "x"),
    Reduced(pickle.loads, b"x"),
    os.system,
]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_pickle_that_names_something_else_is_refused_by_its_name(tmp_path, hostile, protocol):
    """Nothing is called, and nobody is advised to use torch.load."""
    touched = tmp_path / "touched"
    if isinstance(hostile, Reduced):
        function, arguments = hostile.told
        given = [a.format(str(touched)) if isinstance(a, str) else a for a in arguments]
        hostile = Reduced(function, *given)
    path = archive(tmp_path / "a.ckpt", pickled({"cfg": hostile}, protocol))
    with pytest.raises(UserError, match="names .*; it is not executed.*not load .* torch.load"):
        TorchFile(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"(S'touch x'\nios\nsystem\n.", "instruction INST"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"cos\nsystem\n(S'x'\no.", "names os.system"),
        (b"\x80\x02K\x01K\x02R.", "calls what is no name"),
        (b"\x80\x02R.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02}K\x01s.", "damaged"),
        (b"\x80\x02]}a", "no end|damaged"),
        (b"", "no end|damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "damaged"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}b.", None),
        (b"(lp0\nI" + b"9" * 5000 + b"\na.", "damaged"),
    ],
)
def test_other_programs_are_refused_or_harmless(tmp_path, program, message):
    """Old instructions, stacks that run empty, lengths that no file has."""
    path = archive(tmp_path / "a.ckpt", program)
    if message is None:
        with TorchFile(path) as file:
            assert file.content == {}
        return
    with pytest.raises(UserError, match=message):
        TorchFile(path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: tensor(Storage(), offset=1), "outside of its storage"),
        (lambda: tensor(Storage(), offset=-1, size=(1,)), "outside of its storage"),
        (lambda: tensor(Storage(), size=(2, 2), stride=(4, 1)), "outside of its storage"),
        (lambda: tensor(Storage(), size=(4,), stride=(-1,)), "outside of its storage"),
        (lambda: tensor(Storage(), size=(2**40,), stride=(0,)), "outside of its storage"),
        (lambda: tensor(Storage(), size=(2**40, 2**40), stride=(0, 0)), "outside of its storage"),
        (lambda: tensor(Storage(), size=(-4,)), "outside of its storage"),
        (lambda: tensor(Storage(numbers=5)), "storage '0' in it is too short"),
        (lambda: tensor(Storage(numbers=-1)), "storage '0' in it is too short"),
        (lambda: tensor(Storage(key="../0")), "storage '../0' in it is too short"),
        (lambda: tensor(Storage(kind=collections.OrderedDict)), "storage of collections"),
        (lambda: tensor([1.0]), "makes a tensor of no storage"),
    ],
)
def test_tensors_may_not_reach_outside_of_their_storage(tmp_path, made, message):
    """Offsets, strides and sizes are a file's word; memory is not read by them."""
    path = archive(tmp_path / "a.ckpt", pickled([made()]), {"data/0": FOUR})
    with pytest.raises(UserError, match=message):
        TorchFile(path)


def test_a_zip_bomb_is_refused(tmp_path):
    """Compressed entries, and entries that lie upon one another."""
    path = tmp_path / "bomb.ckpt"
    archive(path, pickled([]), {"data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="entries are compressed"):
        TorchFile(path)
    archive(path, pickled([tensor(Storage())]), {"data/0": FOUR, "data/1": bytes(1000)})
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"archive/data/1") - 46  # its entry of the directory: both sizes
    raw[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="larger than the file"):
        TorchFile(path)


def test_other_files_are_refused(tmp_path):
    """Text, an archive of something else, a pickle of before torch 1.6, a big-endian machine."""
    path = tmp_path / "a.ckpt"
    for content in (b"", b"text", pickle.dumps({})):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no file of torch.save"):
            TorchFile(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme", "x")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        TorchFile(path)
    archive(path, pickled([]), {"byteorder": "big"})
    with pytest.raises(UserError, match="big-endian"):
        TorchFile(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_is_refused_or_the_same(saved, tmp_path, place, bit, cut):
    """One bit turned, or the end missing: a user's error, or nothing has changed."""
    path, content = saved
    raw = bytearray(path.read_bytes())
    at = int(place * len(raw))
    if cut:
        raw = raw[:at]
    else:
        raw[at] ^= 1 << bit
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(raw)
    try:
        with TorchFile(damaged) as file:
            found = plain(file, file.content)
    except UserError as error:
        assert str(damaged) in str(error)
        return
    assert torch.equal(found["tensors"]["base"], content["tensors"]["base"])
    assert torch.equal(found["parameter"], content["parameter"])
