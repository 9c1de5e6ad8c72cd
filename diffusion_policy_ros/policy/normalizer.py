"""Normalisation with statistics that are part of the weights.

Each dimension of each vector has a centre and a spread: normalised = (x - centre) / spread. What
they are depends on the kind of key, see NormalizationSettings. A dimension that never moved in the
data is not divided by its tiny spread: it is only centred, and as an action it comes out as the
constant that it was, so that a network's small errors never move what no demonstration moved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.tasks import TASK

ACTION = "action"
ORIENTATIONS = ("quaternion", "rotation_6d")  # kinds of action fields with values in [-1, 1]
CONSTANT = 1e-4  # a smaller range than this (m, rad, ...) is a constant, as in the reference
ROUNDING = 1e-6  # and so is one that float32 hardly resolves at the values' size
ROOM = 1e-3  # for quaternions that are not quite of unit length
TINY = 1e-3  # and a range below this is worth a warning
BEYOND = 1.2  # times the known range, from which on new data reaches beyond it

Bounds = NDArray[np.float64]
Statistics = Mapping[
    str, Mapping[str, Any]
]  # key -> {"min", "max", ...} -> array of the key's size


Kind = Literal["limits", "gaussian", "quantiles", "identity"]

RANGES: dict[str, tuple[tuple[str, ...], Callable[..., tuple[Bounds, Bounds]]]] = {
    "limits": (("min", "max"), lambda low, high: (low, high)),
    "gaussian": (("mean", "std"), lambda mean, std: (mean - std, mean + std)),
    "quantiles": (("quantiles",), lambda rows: (rows[0], rows[-1])),
    "identity": (("min",), lambda low: (-np.ones_like(low), np.ones_like(low))),
}
"""Kind -> the statistics that it reads, and what becomes -1 and 1 of them."""


@dataclass(frozen=True)
class NormalizationSettings:
    """How keys are normalised, by their kind.

    "limits" takes the data's range to [-1, 1], "quantiles" its 1st to 99th percentile, which a few
    outliers do not widen, "gaussian" mean and standard deviation to 0 and 1, and "identity" leaves
    the numbers as they are. Images are no vectors; they always go from 0..255 to -1..1.

    Attributes:
        vectors: observed vectors.
        orientations: quaternions and 6-D rotations, observed or commanded. Their components lie
            in [-1, 1] already, and scaling would leave the unit sphere.
        actions: what else is commanded.
        keys: exceptions, observation key -> kind.
        fields: exceptions, name of a part of the action -> kind.
    """

    vectors: Kind = "limits"
    orientations: Kind = "identity"
    actions: Kind = "limits"
    keys: dict[str, Kind] = dataclasses.field(default_factory=dict)
    fields: dict[str, Kind] = dataclasses.field(default_factory=dict)


class _Part(NamedTuple):
    """Consecutive dimensions of one key that are normalised alike."""

    where: slice
    kind: str


def kinds(contract: Contract, settings: NormalizationSettings) -> dict[str, list[_Part]]:
    """How each vector of the contract, and its action, is normalised.

    Raises:
        UserError: an exception is made for what the contract does not have.
    """
    streams = contract.observations.items()
    vectors = {k: stream for k, stream in streams if not stream.is_image and k != TASK}
    _check_names("keys", settings.keys, vectors)
    _check_names("fields", settings.fields, contract.action.slices)
    found = {}
    for key, stream in vectors.items():
        turns = stream.quantity == "orientation"
        usual = settings.orientations if turns else settings.vectors
        found[key] = [_Part(slice(0, stream.size), settings.keys.get(key, usual))]
    found[ACTION] = []
    for part in contract.action.fields:
        usual = settings.orientations if part.kind in ORIENTATIONS else settings.actions
        where = contract.action.slices[part.name]
        found[ACTION].append(_Part(where, settings.fields.get(part.name, usual)))
    return found


def _check_names(what: str, named: Mapping[str, Kind], known: Mapping[str, Any]) -> None:
    for name in named:
        if name not in known:
            where = f"policy.normalization.{what}"
            raise UserError(f"the contract has no '{name}'", where, did_you_mean(name, known))


class KeyNormalizer(nn.Module):
    """One key's centre and spread, buffers of shape (D,); spread 0 means constant."""

    center: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    @torch.no_grad()
    def fit(self, low: Bounds, high: Bounds, ends: tuple[Bounds, Bounds] | None = None) -> None:
        """Take over the data's range, and what of it becomes -1 and 1: by default all of it.

        Where the data moves but hardly between the two `ends`, as a gripper that was closed for a
        moment does between its percentiles, the whole range is taken after all.
        """
        start, end = ends or (low, high)
        resolved = np.maximum(CONSTANT, ROUNDING * np.maximum(np.abs(low), np.abs(high)))
        still, hidden = high - low < resolved, end - start < resolved
        start, end = np.where(hidden, low, start), np.where(hidden, high, end)
        self.center.copy_(torch.from_numpy(np.where(still, low, (start + end) / 2)))
        self.spread.copy_(torch.from_numpy(np.where(still, 0.0, (end - start) / 2)))

    def normalize(self, value: Tensor) -> Tensor:
        """(..., D) physical units -> normalised; constants are only centred."""
        return (value - self.center) / (self.spread + (self.spread == 0))

    def unnormalize(self, value: Tensor) -> Tensor:
        """(..., D) normalised -> physical units; constants come out as they were in the data."""
        return value * self.spread + self.center


_TAKEN = frozenset(dir(nn.ModuleDict()))


def module_name(key: str) -> str:
    """A key as nn.ModuleDict takes it: without dots, and none of its own attributes' names."""
    name = key.replace(".", "/")
    return f"{name}/" if name in _TAKEN else name


class Normalizer(nn.Module):
    """The normalisers of all vectors of a contract, and of its action.

    Args:
        contract: says which keys there are and of what kind.
        settings: how each kind is normalised.
        action_bound: normalised actions beyond it cannot be sampled; None where all can.

    Raises:
        UserError: settings and contract do not fit together.
    """

    def __init__(
        self,
        contract: Contract,
        settings: NormalizationSettings | None = None,
        action_bound: float | None = None,
    ) -> None:
        super().__init__()
        self._kinds = kinds(contract, settings or NormalizationSettings())
        self._action_bound = action_bound
        sizes = {key: max(part.where.stop for part in parts) for key, parts in self._kinds.items()}
        self.keys = nn.ModuleDict(
            {module_name(key): KeyNormalizer(size) for key, size in sizes.items()}
        )

    def __getitem__(self, key: str) -> KeyNormalizer:
        module = self.keys[module_name(key)]
        assert isinstance(module, KeyNormalizer)
        return module

    @torch.no_grad()
    def fit(self, statistics: Statistics) -> None:
        """Take over the statistics of a dataset, see RANGES; each has the size of its key.

        Raises:
            UserError: statistics are missing, of another size, not finite, or of actions that
                could not be sampled.
        """
        for key, parts in self._kinds.items():
            low, high = (self._read(statistics, key, name) for name in ("min", "max"))
            start, end = low.copy(), high.copy()
            for where, kind in parts:
                names, ends = RANGES[kind]
                found = [self._read(statistics, key, name)[..., where] for name in names]
                start[where], end[where] = ends(*found)
            self[key].fit(low, high, (start, end))
        self._check_bound(statistics)

    def _read(self, statistics: Statistics, key: str, name: str) -> Bounds:
        if key not in statistics or name not in statistics[key]:
            raise UserError(f"no {name} of '{key}'", "statistics", "convert the dataset again")
        found = np.asarray(statistics[key][name], dtype=np.float64)
        size = tuple(self[key].center.shape)
        if found.shape[-1:] != size or found.ndim != (2 if name == "quantiles" else 1):
            what = f"'{key}' has {found.shape} values, the contract {size}"
            raise UserError(what, "statistics", "convert the dataset with this contract")
        if not np.isfinite(found).all():
            raise UserError(f"'{key}' is not finite", "statistics", "remove the broken episode")
        return found

    def _check_bound(self, statistics: Statistics) -> None:
        if self._action_bound is None:
            return
        ends = [torch.as_tensor(self._read(statistics, ACTION, name)) for name in ("min", "max")]
        reach = torch.stack([self[ACTION].normalize(end.float()).abs() for end in ends]).amax(0)
        for where, kind in self._kinds[ACTION]:
            furthest = float(reach[where].max())
            # Percentiles are there to cut outliers off.
            if kind != "quantiles" and furthest > self._action_bound + ROOM:
                what = f"by {kind} it reaches {furthest:.3g}, samples end at {self._action_bound}"
                cure = "raise policy.clip_range, or set policy.clip_sample: false"
                raise UserError(what, f"{ACTION}[{where.start}:{where.stop}]", cure)

    def warnings(self) -> Iterator[str]:
        """Dimensions that never, or hardly, moved in the data."""
        for key in self._kinds:
            spread = self[key].spread.double().cpu().numpy()
            still = np.flatnonzero(spread == 0).tolist()
            tiny = np.flatnonzero((spread > 0) & (2 * spread < TINY)).tolist()
            if still:
                effect = "will never be commanded to move" if key == ACTION else "tells nothing"
                yield f"{key}{still} is constant in the data and {effect}"
            if tiny:
                yield f"{key}{tiny} moves by less than {TINY:g} in the data: is that noise?"

    def reaches(self, other: Normalizer) -> Iterator[tuple[str, float]]:
        """Keys of which another one's range, such as new data's, lies beyond this one's.

        Yields:
            The key, and by how many times; infinite for what was constant.
        """
        for key in self._kinds:
            ours, theirs = self[key], other[key]
            reach = (theirs.center - ours.center).abs() + theirs.spread
            beyond = torch.where(reach > CONSTANT, math.inf, 0.0)
            times = float(torch.where(ours.spread > 0, reach / ours.spread, beyond).max())
            if times > BEYOND:
                yield key, times
