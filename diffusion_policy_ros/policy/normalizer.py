"""Normalisation with statistics that are part of the weights.

Each dimension of each vector has a centre and a spread: normalised = (x - centre) / spread. What
they are depends on the kind of key, see `kinds`. A dimension that never moved in the data is not
divided by its tiny spread: it is only centred, and as an action it comes out as the constant that
it was, so that a network's small errors never move what no demonstration moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.errors import UserError

ACTION = "action"
CONSTANT = 1e-4  # a smaller range than this (m, rad, ...) is a constant, as in the reference
ROUNDING = 1e-6  # and so is one that float32 hardly resolves at the values' size
TINY = 1e-3  # and a range below this is worth a warning

Bounds = NDArray[np.float64]
Statistics = Mapping[
    str, Mapping[str, Any]
]  # key -> {"min", "max", ...} -> array of the key's size


class _Part(NamedTuple):
    """Consecutive dimensions of one key that are normalised alike."""

    where: slice
    kind: str  # "limits": the data's own range to [-1, 1]; "identity": as it is


def kinds(contract: Contract) -> dict[str, list[_Part]]:
    """How each vector of the contract, and its action, is normalised.

    Quaternions stay as they are: their components lie in [-1, 1] already, and scaling would leave
    the unit sphere. Images are no vectors; they always go from 0..255 to -1..1 (see encoders).
    """
    found = {
        key: [_Part(slice(0, stream.size), "identity" if _is_quaternion(stream) else "limits")]
        for key, stream in contract.observations.items()
        if not stream.is_image
    }
    found[ACTION] = [
        _Part(contract.action.slices[part.name], _action_kind(part.kind))
        for part in contract.action.fields
    ]
    return found


def _is_quaternion(stream: Stream) -> bool:
    return stream.field.endswith(("orientation", ".rotation"))


def _action_kind(kind: str) -> str:
    return "identity" if kind == "quaternion" else "limits"


class KeyNormalizer(nn.Module):
    """One key's centre and spread, buffers of shape (D,); spread 0 means constant."""

    center: Tensor
    spread: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    @torch.no_grad()
    def fit(self, low: Bounds, high: Bounds, as_it_is: NDArray[np.bool_]) -> None:
        """Take over the data's range; `as_it_is` marks dimensions that are not scaled."""
        size = np.maximum(np.abs(low), np.abs(high))
        still = high - low < np.maximum(CONSTANT, ROUNDING * size)
        center = np.where(as_it_is, 0.0, (low + high) / 2)
        spread = np.where(as_it_is, 1.0, (high - low) / 2)
        self.center.copy_(torch.from_numpy(np.where(still, low, center)))
        self.spread.copy_(torch.from_numpy(np.where(still, 0.0, spread)))

    def normalize(self, value: Tensor) -> Tensor:
        """(..., D) physical units -> normalised; constants are only centred."""
        divisor = torch.where(self.spread > 0, self.spread, torch.ones_like(self.spread))
        return (value - self.center) / divisor

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
    """

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self._kinds = kinds(contract)
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
        """Take over the statistics of a dataset: for each key "min" and "max" of its size.

        Raises:
            UserError: statistics are missing, of another size, or not finite.
        """
        for key, parts in self._kinds.items():
            low, high = (self._bound(statistics, key, name) for name in ("min", "max"))
            as_it_is = np.zeros(len(low), dtype=bool)
            for where, kind in parts:
                as_it_is[where] = kind == "identity"
            self[key].fit(low, high, as_it_is)

    def _bound(self, statistics: Statistics, key: str, name: str) -> Bounds:
        if key not in statistics or name not in statistics[key]:
            raise UserError(f"no {name} of '{key}'", "statistics", "convert the dataset again")
        bound = np.asarray(statistics[key][name], dtype=np.float64)
        size = self[key].center.shape
        if bound.shape != tuple(size):
            what = f"'{key}' has {bound.shape} values, the contract {tuple(size)}"
            raise UserError(what, "statistics", "convert the dataset with this contract")
        if not np.isfinite(bound).all():
            raise UserError(f"'{key}' is not finite", "statistics", "remove the broken episode")
        return bound

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
