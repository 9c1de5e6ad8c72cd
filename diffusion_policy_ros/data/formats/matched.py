"""A foreign dataset in a contract's keys: SI units, the contract's rotations and picture sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.data.actions import as_fields, next_state_actions
from diffusion_policy_ros.data.formats.demonstrations import Demonstration, Foreign
from diffusion_policy_ros.data.formats.matching import Matching, Source
from diffusion_policy_ros.data.pictures import Images, keeps_bytes
from diffusion_policy_ros.data.shards import ACTION, STAMP
from diffusion_policy_ros.data.store import Recording
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.images import fitted, restored
from diffusion_policy_ros.policy.rotations import TO_QUATERNION


@dataclass
class Matched:
    """Demonstrations of a foreign dataset, as `importing` takes them.

    Attributes:
        foreign: the open dataset.
        contract: the robot.
        matching: where everything comes from.
        every: which frames are taken: each so-manieth.
        images: how pictures are kept that do not come as bytes of a file.

    Raises:
        UserError: the rate is not the contract's, or thinning would lose what deltas tell.
    """

    foreign: Foreign
    contract: Contract
    matching: Matching
    every: int = 1
    images: Images = "auto"

    def __post_init__(self) -> None:
        rate, wanted = self.foreign.rate_hz, self.contract.rate_hz
        if rate is not None and abs(rate / self.every - wanted) > 1e-6 * wanted:
            of = f"every {self.every}th frame of " if self.every > 1 else ""
            cure = f"write rate_hz: {rate / self.every:g} in the contract"
            if rate % wanted == 0:
                cure += f", or take --every {round(rate / wanted)}"
            what = f"recorded at {of}{rate:g} Hz, the contract says {wanted:g}"
            raise UserError(what, self.where, cure)
        deltas = [part.name for part in self.contract.action.fields if part.is_delta]
        if self.every > 1 and deltas and self.matching.action is not None:
            what = f"{deltas[0]} is a delta, and those of frames that are left out are lost"
            raise UserError(what, self.where, "leave --every out, or write record: next_state")

    @property
    def where(self) -> str:
        """The path that they come from."""
        return self.foreign.where

    @property
    def names(self) -> Sequence[str]:
        """The episodes' names."""
        return self.foreign.names

    @property
    def is_ours(self) -> bool:
        """Whether it was exported from a dataset of ours, in its units."""
        return bool(self.foreign.contract)

    def read(self, name: str) -> Recording:
        """An episode in the contract's keys.

        Raises:
            UserError: it is damaged, or too short.
        """
        wanted = self.matching.columns | ({STAMP} if STAMP in self.foreign.columns else set())
        found = self.foreign.read(name, wanted)
        found.vectors = {key: values[:: self.every] for key, values in found.vectors.items()}
        streams = self.contract.observations
        vectors = {
            key: self._vector(stream, self.matching.observations[key], found)
            for key, stream in streams.items()
            if not stream.is_image
        }
        frames = len(next(iter(found.vectors.values())))
        if self.matching.action is None:
            vectors[ACTION] = next_state_actions(self.contract, vectors)
            frames -= 1
        else:
            vectors[ACTION] = self._action(self.matching.action, found, vectors)
        if frames < 1:
            raise UserError("has no frame with an action", "", "leave the episode out")
        vectors[STAMP] = self._stamps(found, frames)
        arrays: dict[str, Any] = {key: values[:frames] for key, values in vectors.items()}
        for key in (key for key, stream in streams.items() if stream.is_image):
            column = self.matching.observations[key].columns[0]
            pictures = islice(found.images[column], 0, frames * self.every, self.every)
            keeps = keeps_bytes(streams[key], self.images)
            arrays[key] = map(partial(_fitted, streams[key], keeps), pictures)
        return Recording(f"{self.where}/{name}", arrays, found.success, found.task)

    def _vector(self, stream: Stream, source: Source, found: Demonstration) -> Array:
        values = _stacked(source, found)
        if source.turn:
            return np.asarray(TO_QUATERNION[source.turn](values), dtype=np.float32)
        return values if self.is_ours else _scaled(values, stream)

    def _action(self, source: Source, found: Demonstration, states: dict[str, Array]) -> Array:
        """As the contract's fields have it; what is told as a recorded command is converted."""
        values, action = _stacked(source, found), self.contract.action
        if self.is_ours:
            return values
        recorded = sum(part.size for part in action.recorded)
        if action.commands and values.shape[1] == recorded:
            values = np.concatenate(_commands(values, action.commands), axis=1)
            return as_fields(self.contract, values, np.ones(len(values), bool), states)
        self._check_grippers(values)
        return values

    def _check_grippers(self, values: Array) -> None:
        """Nothing cuts what is given field by field: -1 is open there, +1 closed.

        Raises:
            UserError: it is told in other numbers.
        """
        action = self.contract.action
        for part in (part for part in action.fields if part.kind == "binary"):
            found = values[:, action.slices[part.name]]
            if ((found == 0) | (np.abs(found) > 1)).any():
                told = f"{part.name} is {found.min():g} to {found.max():g}"
                cure = f"make it a scalar, or record an array of {values.shape[1]} values, which "
                cure += "is cut where open_value and closed_value say"
                raise UserError(f"{told}, a binary is -1 open and +1 closed", "", cure)

    def _stamps(self, found: Demonstration, frames: int) -> Array:
        if STAMP in found.vectors:
            return np.asarray(found.vectors[STAMP][:frames, 0], dtype=np.int64)
        return np.arange(frames, dtype=np.int64) * self.contract.period_ns


def _fitted(stream: Stream, keeps: bool, picture: Array | bytes) -> Array | bytes:
    """A picture as the contract wants it; one of its own size is left as it is.

    Args:
        stream: the camera.
        keeps: whether the dataset keeps bytes, so that these need not be decoded.
        picture: a picture, or a jpeg's or png's bytes.

    Raises:
        UserError: it cannot be read, or fitted.
    """
    try:
        if isinstance(picture, bytes) and keeps and shape_of(picture) == stream.shape:
            return picture
        image = restored(stream, picture) if isinstance(picture, bytes) else picture
        if image.shape == stream.shape:
            return image
        if image.shape[:2] == stream.shape[:2] != stream.source_size and stream.shape[2] == 1:
            return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[..., None]
        return fitted(stream, image)
    except UserError as error:
        raise UserError(f"{stream.name}: {error.what}", "", error.cure) from None


def shape_of(data: bytes) -> tuple[int, ...]:
    """(height, width, 3) of a picture in colours, by its head alone; nothing of any other."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as found:
            return (found.height, found.width, 3) if found.mode == "RGB" else ()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ()


def _stacked(source: Source, found: Demonstration) -> Array:
    """The elements of a source: float32 (frames, n)."""
    parts = [found.vectors[column][:, place] for column, place in source.elements]
    return np.stack(parts, axis=1).astype(np.float32)


def _commands(values: Array, commands: Sequence[Stream]) -> list[Array]:
    """Each recorded stream's part of the values, in SI units."""
    ends = np.cumsum([stream.size for stream in commands])[:-1]
    parts = np.split(values, ends, axis=1)
    return [_scaled(part, stream) for part, stream in zip(parts, commands, strict=True)]


def _scaled(values: Array, stream: Stream) -> Array:
    if not stream.scale:
        return values
    return np.asarray(values.astype(np.float64) * np.array(stream.scale), dtype=np.float32)
