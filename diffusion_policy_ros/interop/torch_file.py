"""Files of `torch.save`, read without torch's unpickler: tensors and plain data, nothing called.

A file is a zip archive of a pickle and raw storages. The pickle is read by `read_pickle`; a tensor
is a view of a storage, whose extent is checked before anything is looked at.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.pickles import Makers, Name, read_pickle

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
EXPECTED = {
    "builtins": {"dict", "list", "tuple", "set", "int", "float", "bool", "str", "bytes", "object"},
    "collections": {"OrderedDict", "defaultdict"},
    "typing": {"Any", "Union", "Optional"},
    "_codecs": {"encode"},
    "copyreg": {"_reconstructor"},
    "dill._dill": {"_load_type"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "torch": {*STORAGES, "device", "Size"},
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"},
}
"""Module -> what files name of it; and anything of omegaconf, which configurations are of."""

BUILTIN = {"__builtin__": "builtins"}
COPY = "copy the file again"
DAMAGE = (zipfile.BadZipFile, EOFError, OSError, zlib.error, RuntimeError, ValueError)
"""What `zipfile` raises of a damaged archive; a name that is no text is a ValueError."""


class StoredTensor(NamedTuple):
    """A tensor that has not been read yet.

    Attributes:
        key: of its storage.
        dtype: of its numbers.
        total: numbers in the storage.
        offset: where it begins.
        size: its shape.
        stride: numbers between neighbours, of each dimension.
    """

    key: str
    dtype: torch.dtype
    total: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    total: int


class TorchFile:
    """A file of `torch.save`.

    Args:
        path: the file.

    Attributes:
        content: what was saved: plain data, `StoredTensor` for tensors, `Made` for objects.

    Raises:
        UserError: it is no such file, is damaged, or names what no checkpoint needs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            what = "is no file of torch.save, or not all of it"
            cure = f"{COPY}; one older than torch 1.6 has to be saved anew"
            raise UserError(what, str(path), cure) from None
        try:
            self._entries = self._checked_entries()
            self.content = self._read_content()
        except UserError as error:
            self._zip.close()
            raise UserError(error.what, str(path), error.cure) from None

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        """Entries by their name below the archive's own folder."""
        infos = self._zip.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise UserError("its entries are compressed, which torch.save never does", cure=COPY)
        if sum(info.file_size for info in infos) > self._path.stat().st_size:
            raise UserError("its entries are larger than the file", cure=COPY)
        found = {info.filename.partition("/")[2]: info for info in infos}
        if "data.pkl" not in found or len(found) != len(infos):
            raise UserError("has no data.pkl in one folder, as torch.save writes", cure=COPY)
        return found

    def _read_content(self) -> Any:
        if "byteorder" in self._entries and self._bytes("byteorder") != b"little":
            raise UserError("is of a big-endian machine", cure="save it on a little-endian one")
        makers: Makers = {
            Name("collections", "OrderedDict"): _ordered_dict,
            Name("collections", "defaultdict"): lambda *_: {},
            Name("_codecs", "encode"): _encode,
            Name("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        return read_pickle(self._bytes("data.pkl"), makers, _is_expected, self._storage)

    def _bytes(self, name: str) -> bytes:
        if name not in self._entries:
            raise UserError(f"'{name}' is missing in it", cure=COPY)
        try:
            return self._zip.read(self._entries[name])
        except DAMAGE:
            raise UserError(f"'{name}' in it is damaged", cure=COPY) from None

    def _storage(self, told: Any) -> _Storage:
        kind, of, key, _, count = told
        if kind != "storage" or not isinstance(of, Name) or of.name not in STORAGES:
            raise UserError(f"it holds a storage of {of}", cure="save it with plain tensors")
        found = _Storage(str(key), STORAGES[of.name], int(count))
        entry = self._entries.get(f"data/{found.key}")
        if entry is None or not 0 <= found.total * found.dtype.itemsize <= entry.file_size:
            raise UserError(f"the storage '{found.key}' in it is too short", cure=COPY)
        return found

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise ValueError("makes a tensor of no storage")
        found = StoredTensor(*storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))
        numbers = 1
        for count in found.size:
            numbers *= count
        spans = zip(found.size, found.stride, strict=True)
        end = found.offset + (sum((n - 1) * step for n, step in spans) + 1 if numbers else 0)
        least = min((found.offset, *found.size, *found.stride))
        if least < 0 or max(end, numbers) > found.total:
            raise UserError("a tensor in it reaches outside of its storage", cure=COPY)
        return found

    def read(self, stored: StoredTensor) -> Tensor:
        """A tensor's numbers, its own copy.

        Raises:
            UserError: the file is damaged there.
        """
        try:
            data = self._bytes(f"data/{stored.key}")
        except UserError as error:
            raise UserError(error.what, str(self._path), error.cure) from None
        if not stored.total:
            return torch.empty(stored.size, dtype=stored.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=stored.dtype, count=stored.total)
        return flat.as_strided(stored.size, stored.stride, stored.offset).clone()

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_expected(name: Name) -> bool:
    module = BUILTIN.get(name.module, name.module)
    return name.name in EXPECTED.get(module, ()) or module.partition(".")[0] == "omegaconf"


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs.items() if isinstance(pairs, Mapping) else pairs)


def _encode(text: str, coding: str = "latin1") -> bytes:
    """How pickles of protocol 2 write bytes."""
    if coding != "latin1":
        raise ValueError(f"bytes are written as {coding}")
    return text.encode("latin1")
