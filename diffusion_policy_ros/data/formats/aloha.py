"""ACT's and ALOHA's files: ``episode_N.hdf5`` in a folder, one an episode.

    observations/qpos           (n, D), where the joints are; qvel and effort likewise
    observations/images/NAME    uint8 (n, H, W, 3), or rows of jpeg bytes with attribute compress
    action                      (n, D)
    attribute sim               whether it was simulated

Needs h5py: ``pip install 'diffusion_policy_ros[robomimic]'``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.formats import HDF5_DAMAGED, needed, opened_hdf5
from diffusion_policy_ros.data.formats.demonstrations import (
    Choice,
    Column,
    Demonstration,
    Writing,
    Written,
    built_beside,
    refuse_existing,
)
from diffusion_policy_ros.data.formats.naming import short_names
from diffusion_policy_ros.data.shards import ACTION
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array

OBSERVATIONS, IMAGES = "observations", "observations/images"
VECTORS = {"joint_position": "qpos", "joint_velocity": "qvel", "joint_effort": "effort"}
"""Quantity → the array that all observations of it become, one after another."""
_DAMAGED = (*HDF5_DAMAGED, TypeError)
_AGAIN = "get the file again"


class Folder:
    """A folder of episodes that is open for reading; see `Foreign`.

    Args:
        path: the folder.
        choice: which episodes.

    Raises:
        UserError: it holds none, or they cannot be read.
    """

    rate_hz = None
    contract = ""

    def __init__(self, path: str | Path, choice: Choice) -> None:
        self.where = str(path)
        needed("h5py", "robomimic")
        if choice.tasks:
            raise UserError("its files say no task", self.where, "leave --task out")
        found = {}
        for file in Path(path).glob("episode_*.hdf5"):
            if number := re.fullmatch(r"episode_(\d+)", file.stem):
                found[int(number[1])] = file
        if not found:
            what = "holds no episode_0.hdf5"
            raise UserError(what, self.where, "give the folder of ACT's or ALOHA's episodes")
        lost = [n for n in choice.episodes if n not in found]
        if lost:
            raise UserError(f"has no episode {lost[0]}", self.where, f"it has {len(found)}")
        chosen = sorted(n for n in found if not choice.episodes or n in choice.episodes)
        self._files = {f"episode_{n}": found[n] for n in chosen}
        self.names = list(self._files)
        self.columns = self._first_columns()

    def _first_columns(self) -> dict[str, Column]:
        """Of the first file that can be read; the others are rejected one by one."""
        refused: list[UserError] = []
        for path in self._files.values():
            try:
                with _opened(path) as file:
                    return dict(_columns(file))
            except UserError as error:
                refused.append(error)
        raise refused[0]

    def read(self, name: str, columns: Collection[str]) -> Demonstration:
        """An episode; see `Foreign`."""
        path = self._files[name]
        vectors: dict[str, Array] = {}
        images: dict[str, Any] = {}
        with _opened(path) as file:
            for column in columns:
                if self.columns[column].is_image:
                    images[column] = _Pictures(path, f"{IMAGES}/{column}")
                    continue
                place = column if column == ACTION else f"{OBSERVATIONS}/{column}"
                values = np.asarray(file[place])
                if values.shape[1:] != self.columns[column].shape:
                    raise UserError(f"{column} is {values.shape[1:]}", str(path), "leave it out")
                vectors[column] = values
        lengths = {len(values) for values in vectors.values()}
        if len(lengths) > 1:
            raise UserError("its arrays are of different lengths", str(path), _AGAIN)
        return Demonstration(vectors, images)


class _opened:  # noqa: N801  # used as a function
    """A file, open for reading; h5py's errors become a user's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        self._file = opened_hdf5(self._path)
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        self._file.close()
        if kind is not None and issubclass(kind, _DAMAGED):
            what = f"is damaged ({str(error)[:80]})"
            raise UserError(what, str(self._path), _AGAIN) from None


def _columns(file: Any) -> Iterator[tuple[str, Column]]:
    """Vectors by their names, cameras by theirs; what is none of both is no column."""
    for name, array in _arrays(file, OBSERVATIONS).items():
        if array.ndim == 2:
            yield name, Column(array.shape[1:])
    for name, array in _arrays(file, IMAGES).items():
        if array.ndim in (1, 2, 4):
            yield name, Column(array.shape[1:] if array.ndim == 4 else (), is_image=True)
    if getattr(file.get(ACTION), "ndim", 0) == 2:
        yield ACTION, Column(file[ACTION].shape[1:])


def _arrays(file: Any, place: str) -> dict[str, Any]:
    """The arrays in a group; none where there is no such group."""
    group = file.get(place)
    found = group.items() if hasattr(group, "items") else ()
    return {name: array for name, array in found if hasattr(array, "ndim")}


@dataclass(frozen=True)
class _Pictures:
    """A camera's pictures; jpeg bytes as they are."""

    path: Path
    place: str

    def __iter__(self) -> Iterator[Array | bytes]:
        with _opened(self.path) as file:
            array = file[self.place]
            for row in range(len(array)):
                # Compressed rows are padded with zeros to one length, which a decoder ignores.
                picture = np.asarray(array[row])
                yield picture if picture.ndim == 3 else picture.astype(np.uint8).tobytes()


def read(path: str | Path, choice: Choice) -> Folder:
    """Open a folder.

    Raises:
        UserError: it holds no episodes, or they cannot be read.
    """
    return Folder(path, choice)


def check(contract: Contract, _: Writing) -> dict[str, list[str]]:
    """Array → the observations that it is made of.

    Raises:
        UserError: there are no joints' positions, or h5py is not installed.
    """
    needed("h5py", "robomimic")
    groups = vectors_of(contract)
    if "qpos" not in groups:
        what = "has no joint positions, which these files are of"
        raise UserError(what, contract.name, "export it as lerobot or robomimic")
    return groups


def write(path: str | Path, out: str | Path, options: Writing) -> Written:
    """Write a dataset as a folder of episodes.

    Raises:
        UserError: it has no joints' positions, or there is something at ``out``. Nothing is left.
    """
    dataset, out = Dataset(path), Path(out)
    refuse_existing(out)
    groups = check(dataset.contract, options)
    h5py = needed("h5py", "robomimic")
    numbers = options.chosen(dataset)
    with built_beside(out) as building:
        building.mkdir()
        for place, number in enumerate(numbers):
            with h5py.File(building / f"episode_{place}.hdf5", "w") as file:
                _write_one(file, dataset.contract, dataset.episode(number), groups)
        building.rename(out)
    left = [
        key for key in _vectors(dataset.contract) if not any(key in g for g in groups.values())
    ]
    notes = [f"left out, for the files have no place for it: {', '.join(left)}"] if left else []
    frames = sum(dataset.episodes[number].frames for number in numbers)
    return Written(out, len(numbers), frames, notes=notes)


def vectors_of(contract: Contract) -> dict[str, list[str]]:
    """Array → the observations that it is made of; a gripper's joints follow the arm's."""
    found: dict[str, list[str]] = {}
    for key in _vectors(contract):
        name = VECTORS.get(contract.observations[key].quantity, "")
        if name:
            found.setdefault(name, []).append(key)
    return found


def _vectors(contract: Contract) -> list[str]:
    return [key for key, stream in contract.observations.items() if not stream.is_image]


def _write_one(
    file: Any, contract: Contract, arrays: dict[str, Array], groups: dict[str, list[str]]
) -> None:
    file.attrs["sim"] = False
    file.attrs["compress"] = False
    for name, keys in groups.items():
        file[f"{OBSERVATIONS}/{name}"] = np.concatenate([arrays[key] for key in keys], axis=1)
    for key, name in short_names(contract).items():
        grey = contract.observations[key].shape[2] == 1
        pictures = np.repeat(arrays[key], 3, axis=3) if grey else arrays[key]
        chunks = (1, *pictures.shape[1:])
        file.create_dataset(f"{IMAGES}/{name}", data=pictures, chunks=chunks)
    file[ACTION] = arrays[ACTION]
