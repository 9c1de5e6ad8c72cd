"""Demonstrations of robomimic, one HDF5 file, into a dataset like that of recorded bags.

The layout of its files (https://robomimic.github.io/docs/datasets/overview.html):

    data                  attribute env_args: the simulator's settings, JSON
    data/demo_N/actions   (n, Da)
    data/demo_N/obs/KEY   (n, ...), images uint8 (n, H, W, C)
    data/demo_N/rewards   (n,), above 0 where the task is solved; with env_args' reward_shaping, as
                          in files called dense, 1 and more there, and a part of it on the way
    mask/NAME             the demonstrations of a part, such as train and valid

Values stand in for those of messages: the contract's `scale` of a stream brings them to SI units.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.formats import HDF5_DAMAGED, needed, opened_hdf5
from diffusion_policy_ros.data.formats.demonstrations import (
    Writing,
    Written,
    built_beside,
    refuse_existing,
)
from diffusion_policy_ros.data.reports import BagReport, Progress, Report
from diffusion_policy_ros.data.shards import ACTION, STAMP
from diffusion_policy_ros.data.store import Adding, Recording, adding
from diffusion_policy_ros.errors import UserError, UserErrors, did_you_mean
from diffusion_policy_ros.observe.codecs import Array

NUMBERS = "fiu"  # dtype kinds that become float32
SOLVED = 1 - 1e-6
"""Shaped reward from which on a task of robosuite is solved, but for rounding."""
DELTA, ABSOLUTE = ("delta_position", "delta_axis_angle"), ("position", "axis_angle")


def import_robomimic(
    path: str | Path,
    contract: Contract,
    out: str | Path,
    mask: str = "",
    progress: Progress | None = None,
) -> Report:
    """Make a dataset of a file's demonstrations, or add those that it does not have yet.

    Args:
        path: the HDF5 file.
        contract: which observations to take, and what an action is.
        out: the dataset's folder; made if it is missing.
        mask: the part of the demonstrations to take, such as "train"; all by default.
        progress: told of each demonstration when it is done.

    Raises:
        UserError: the file does not fit the contract, or the dataset is another robot's. The
            dataset is as it was.
    """
    path = Path(path)
    with _opened(path) as file, adding(out, contract) as new:
        source = _Source(path, contract, file)
        with _damage_named(str(path)):
            names = source.demonstrations(mask)
            source.check(names)
        for done, name in enumerate(names, 1):
            report = _add(new, source, name)
            if progress is not None:
                progress(report, done, len(names))
    return new.report


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, open for reading.

    Raises:
        UserError: h5py is missing, or the file is, or it is damaged.
    """
    needed("h5py", "robomimic")
    if not path.is_file():
        raise UserError("no such file", str(path), "give robomimic's HDF5 file")
    with opened_hdf5(path) as file:
        yield file


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    """h5py's errors while it reads, as a user's.

    Raises:
        UserError: the file is damaged.
    """
    try:
        yield
    except HDF5_DAMAGED as error:
        what = f"is damaged ({str(error)[:80]})"
        raise UserError(what, where, "download the file again") from None


@dataclass
class _Source:
    """An open file that is to fit a contract."""

    path: Path
    contract: Contract
    file: Any

    def demonstrations(self, mask: str) -> list[str]:
        """Names of the demonstrations of a part, demo_2 before demo_10.

        Raises:
            UserError: there are none, or no such part.
        """
        where = str(self.path)
        found = [name for name in _group(self.file, "data") if re.fullmatch(r"demo_\d+", name)]
        if not found:
            cure = "give a file with data/demo_0/actions and data/demo_0/obs"
            raise UserError("holds no demonstrations", where, cure)
        if mask:
            found = self._masked(mask, found)
        return sorted(found, key=lambda name: int(name.partition("_")[2]))

    def _masked(self, mask: str, found: Sequence[str]) -> list[str]:
        masks = _group(self.file, "mask")
        if mask not in masks:
            cure = did_you_mean(mask, masks) if masks else "leave --mask out"
            raise UserError(f"has no mask '{mask}'", str(self.path), cure)
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in masks[mask][()]]
        lost = sorted(set(names) - set(found))
        if lost or not names:
            what = f"names {lost[0]}, which is not there" if lost else "is empty"
            cure = "choose another mask, or leave --mask out"
            raise UserError(f"mask '{mask}' {what}", str(self.path), cure)
        return names

    def check(self, names: Sequence[str]) -> None:
        """Compare settings and shapes with the contract, before anything is read.

        Raises:
            UserErrors: all that does not fit, each once.
        """
        found: dict[str, UserError] = {}
        for problem in self._setting_problems():
            found.setdefault(problem.what, problem)
        for name in names:
            for problem in self._shape_problems(name):
                found.setdefault(problem.what, problem)
        if found:
            raise UserErrors(list(found.values()))

    def _shape_problems(self, name: str) -> Iterator[UserError]:
        demo, where = _group(self.file["data"], name), f"{self.path}: {name}"
        actions, size = demo.get("actions"), self.contract.action_dim
        if not _is_array(actions) or actions.dtype.kind not in NUMBERS or not len(actions):
            yield UserError("has no actions", where, "give robomimic's HDF5 file")
            return
        if actions.shape[1:] != (size,):
            what = f"an action is {actions.shape[1:]}, the contract says {(size,)}"
            yield UserError(what, where, "choose the contract of this robot")
        stored = _group(demo, "obs")
        for key, stream in self.contract.observations.items():
            yield from _array_problems(key, stream, stored, len(actions), where)

    def _setting_problems(self) -> Iterator[UserError]:
        """Where the simulator's settings, if they are noted, contradict the contract."""
        settings = self._env_settings()
        where, kinds = f"{self.path}: env_args", {f.kind for f in self.contract.action.fields}
        rate = settings.get("control_freq")
        if isinstance(rate, int | float) and rate != self.contract.rate_hz:
            what = f"recorded at {rate:g} Hz, the contract says {self.contract.rate_hz:g}"
            yield UserError(what, where, f"write rate_hz: {rate:g}")
        controller = _arm(settings.get("controller_configs"))
        said = controller.get("input_type")
        named = {"delta": True, "absolute": False}.get(said) if isinstance(said, str) else None
        is_delta = controller.get("control_delta", named)
        for claimed, wrong in ((True, ABSOLUTE), (False, DELTA)):
            if is_delta is claimed and kinds & set(wrong):
                said = "delta" if claimed else "absolute"
                cure = f"use the kinds {', '.join(DELTA if claimed else ABSOLUTE)}"
                yield UserError(f"actions are {said}, the contract says otherwise", where, cure)
        unit = controller.get("output_max")
        if is_delta is True and kinds & set(DELTA) and isinstance(unit, list):
            # The controller's range is what one unit of a delta action is, m and rad.
            scale = self.action_scale()[: len(unit)].tolist()
            if len(scale) == len(unit) and not _close(scale, unit):
                what = f"one unit of an action is {unit}, the contract's scale says {scale}"
                yield UserError(what, where, "write it as action.record's scale")

    def _env_settings(self) -> dict[str, Any]:
        try:
            noted = json.loads(self.file["data"].attrs.get("env_args", "{}"))
            settings = noted.get("env_kwargs", {})
        except (*HDF5_DAMAGED, TypeError, AttributeError):
            return {}  # a note, not a need
        return settings if isinstance(settings, dict) else {}

    def action_scale(self) -> NDArray[np.float64]:
        """What one unit of each element of an action is; ones where that cannot be said."""
        size = self.contract.action_dim
        found = [_scale(stream) for stream in self.contract.action.commands]
        return np.concatenate(found) if sum(map(len, found)) == size else np.ones(size)

    def read(self, name: str) -> tuple[dict[str, Array], bool | None]:
        """A demonstration's arrays, and whether it solved the task.

        Raises:
            UserError: it cannot be read.
        """
        with _damage_named(""):
            demo = self.file["data"][name]
            arrays = {
                key: _taken(demo["obs"][key], stream)
                for key, stream in self.contract.observations.items()
            }
            raw = np.asarray(demo["actions"], dtype=np.float64)
            rewards = np.asarray(demo["rewards"]) if "rewards" in demo else None
        with np.errstate(over="ignore"):  # becomes infinite, which is rejected
            arrays[ACTION] = (raw * self.action_scale()).astype(np.float32)
        arrays[STAMP] = np.arange(len(raw), dtype=np.int64) * self.contract.period_ns
        return arrays, None if rewards is None else self._solved(rewards)

    def _solved(self, rewards: Array) -> bool:
        """Whether rewards say so; shaped ones are above 0 for coming near, too."""
        if self._env_settings().get("reward_shaping") is True:
            return bool((rewards >= SOLVED).any())
        return bool((rewards > 0).any())


def _add(new: Adding, source: _Source, name: str) -> BagReport:
    where = f"{source.path}/{name}"
    try:
        arrays, success = source.read(name)
    except UserError as error:
        return new.reject(where, str(error))
    return new.add(Recording(where, arrays, success))


def _taken(array: Any, stream: Stream) -> Array:
    if stream.is_image:
        return np.asarray(array, dtype=np.uint8)
    return np.asarray(np.asarray(array, dtype=np.float64) * _scale(stream), dtype=np.float32)


def _scale(stream: Stream) -> NDArray[np.float64]:
    return np.broadcast_to(np.array(stream.scale or (1.0,), dtype=np.float64), (stream.size,))


def _array_problems(
    key: str, stream: Stream, stored: Mapping[str, Any], frames: int, where: str
) -> Iterator[UserError]:
    """Why an observation is not what the contract says."""
    array = stored.get(key)
    if not _is_array(array):
        nothing = "extract observations with robomimic first"
        yield UserError(
            f"has no observation '{key}'", where, did_you_mean(key, stored) if stored else nothing
        )
    elif array.shape[1:] != stream.shape or not (
        array.dtype == np.uint8 if stream.is_image else array.dtype.kind in NUMBERS
    ):
        wanted = f"{'uint8' if stream.is_image else 'float32'} {stream.shape}"
        what = f"{key} is {array.dtype} {array.shape[1:]}, the contract says {wanted}"
        yield UserError(what, where, "mend the contract, or extract observations anew")
    elif len(array) != frames:
        what = f"{key} has {len(array)} frames, actions {frames}"
        yield UserError(what, where, "download the file again")


def _arm(controller: object) -> dict[str, Any]:
    """The settings of the arm's controller; robosuite has one for each part of the body from 1.5
    on, and names them in a group ``arms`` where they are written by hand.
    """
    found = controller if isinstance(controller, dict) else {}
    for name in ("body_parts", "arms", "right"):
        found = found[name] if isinstance(found.get(name), dict) else found
    return found


def _group(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of the file; an empty one where there is none."""
    found = parent.get(name)
    return found if isinstance(found, Mapping) else {}


def _is_array(value: Any) -> TypeGuard[NDArray[Any]]:
    return hasattr(value, "dtype") and bool(getattr(value, "shape", ()))


def _close(scale: Sequence[float], unit: Sequence[Any]) -> bool:
    """Whether they are the same numbers; what is no number contradicts nothing."""
    pairs = zip(scale, unit, strict=True)
    return all(not isinstance(b, int | float) or abs(a - b) < 1e-9 for a, b in pairs)


def check(_: Contract, __: Writing) -> None:
    """Refuse what cannot be written.

    Raises:
        UserError: h5py is not installed.
    """
    needed("h5py", "robomimic")


def write(path: str | Path, out: str | Path, options: Writing) -> Written:
    """Write a dataset as a file of robomimic, in the units that its contract's `scale` is of.

    Raises:
        UserError: there is something at ``out``. Nothing is left there.
    """
    h5py, dataset, out = needed("h5py", "robomimic"), Dataset(path), Path(out)
    refuse_existing(out)
    source, frames, numbers = _Source(out, dataset.contract, {}), 0, options.chosen(dataset)
    with built_beside(out) as building:
        with h5py.File(building, "w") as file:
            data = file.create_group("data")
            for place, number in enumerate(numbers):
                episode = dataset.episodes[number]
                group = data.create_group(f"demo_{place}")
                _write_demo(group, source, dataset.episode(number), episode.success)
                frames += episode.frames
            data.attrs["total"] = frames
            data.attrs["env_args"] = json.dumps(_env_args(dataset.contract))
        building.rename(out)
    return Written(out, len(numbers), frames)


def _write_demo(
    group: Any, source: _Source, arrays: Mapping[str, Array], success: bool | None
) -> None:
    frames = len(arrays[ACTION])
    group.attrs["num_samples"] = frames
    group["actions"] = arrays[ACTION] / source.action_scale()
    last = np.arange(frames) == frames - 1
    group["dones"] = last.astype(np.int64)
    # Without a word of anybody a demonstration counts as what it was made to be.
    group["rewards"] = last * float(success is not False)
    for key, stream in source.contract.observations.items():
        values = arrays[key] if stream.is_image else arrays[key] / _scale(stream)
        group[f"obs/{key}"] = values


def _env_args(contract: Contract) -> dict[str, Any]:
    """What robomimic notes of the world that it was recorded in, as far as a contract says it."""
    kinds = {part.kind for part in contract.action.fields}
    settings: dict[str, Any] = {"control_freq": contract.rate_hz}
    if kinds & {*DELTA, *ABSOLUTE}:
        settings["controller_configs"] = {"control_delta": bool(kinds & set(DELTA))}
    return {"env_name": contract.name, "type": 1, "env_kwargs": settings}
