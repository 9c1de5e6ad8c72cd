"""A policy of another project, told in our terms, and ours made of it.

A reader (`lerobot.py`, `original.py`) tells what was trained: settings, what is observed in the
order of the condition, and weights under our names. A contract says what its numbers are on a
robot; which of the contract's observations is which of theirs is matched here, by name, and the
network's inputs are permuted where the contract has them in another order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.formats.naming import camera_names
from diffusion_policy_ros.errors import UserError, did_you_mean
from diffusion_policy_ros.policy.backbones import RESNETS
from diffusion_policy_ros.policy.checkpoint import load_exactly
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.eyes import ImageEncoderSettings
from diffusion_policy_ros.policy.normalizer import ACTION, module_name
from diffusion_policy_ros.policy.recipe import PolicySettings, Recipe

Matches = Mapping[str, tuple[str, ...]]
"""Name of their observation -> keys of the contract's, whose values in a row it is."""


@dataclass(frozen=True)
class Vector:
    """Numbers that are observed, or the action; normalised = (value - center) / spread.

    Attributes:
        name: theirs.
        center: (D,).
        spread: (D,); 0 does not divide, and as an action is the constant.
        aliases: what else it is called.
    """

    name: str
    center: Tensor
    spread: Tensor
    aliases: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """D."""
        return len(self.center)

    @property
    def features(self) -> int:
        """How many numbers of the condition it is."""
        return self.size

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.name} ({self.size})"


@dataclass(frozen=True)
class Camera:
    """A picture that is observed.

    Attributes:
        name: theirs.
        shape: (height, width, channels).
        encoder: what it is looked at with.
        weights: of that, under the names of our `ImageEncoder`.
        aliases: what else it is called.
    """

    name: str
    shape: tuple[int, int, int]
    encoder: ImageEncoderSettings
    weights: Mapping[str, Tensor]
    aliases: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        """How many numbers of the condition it is."""
        block, _ = RESNETS[self.encoder.name]
        return self.encoder.features or 512 * block.expansion

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.name} ({' x '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Foreign:
    """A policy of another project.

    Attributes:
        origin: the project and its layout.
        settings: what it is, all but the cameras' encoders.
        observations: in the order of the condition.
        action: what it predicts.
        denoiser: weights of the network under our names.
        files: what was read.
        remarks: what a user should know.
        licence: what the files say of it.
    """

    origin: str
    settings: PolicySettings
    observations: tuple[Vector | Camera, ...]
    action: Vector
    denoiser: Mapping[str, Tensor]
    files: tuple[Path, ...]
    remarks: tuple[str, ...] = ()
    licence: str = ""

    @property
    def vectors(self) -> list[Vector]:
        """What is observed but pictures."""
        return [o for o in self.observations if isinstance(o, Vector)]

    @property
    def cameras(self) -> list[Camera]:
        """The pictures that are observed."""
        return [o for o in self.observations if isinstance(o, Camera)]


def match(foreign: Foreign, contract: Contract, said: Matches | None = None) -> Matches:
    """Which of the contract's observations is which of theirs.

    What `said` does not name is matched by name, the last part of a dotted one, or an alias.
    Vectors whose names are no match fill theirs in the contract's order, if the sizes add up;
    cameras are never guessed.

    Raises:
        UserError: something has no match, or another size.
    """
    found = dict(_checked(said or {}, foreign, contract))
    left = [key for key in contract.observations if key not in _taken(found)]
    for theirs in foreign.observations:
        if theirs.name in found:
            continue
        names = {theirs.name, *theirs.aliases}
        names |= {name.rpartition(".")[2] for name in names}
        is_camera = isinstance(theirs, Camera)
        for key in left:
            called = {key, camera_names(contract).get(key, key)}
            if called & names and contract.observations[key].is_image == is_camera:
                found[theirs.name] = (key,)
                left.remove(key)
                break
    found |= _in_order(foreign, contract, found, left)
    _check_whole(foreign, contract, found)
    return {theirs.name: found[theirs.name] for theirs in foreign.observations}


def _checked(
    said: Matches, foreign: Foreign, contract: Contract
) -> Iterator[tuple[str, tuple[str, ...]]]:
    theirs = [o.name for o in foreign.observations]
    for name, keys in said.items():
        if name not in theirs:
            cure = did_you_mean(name, theirs)
            raise UserError(f"the checkpoint observes no '{name}'", "--map", cure)
        for key in keys:
            if key not in contract.observations:
                cure = did_you_mean(key, contract.observations)
                raise UserError(f"the contract observes no '{key}'", "--map", cure)
        yield name, keys


def _taken(found: Matches) -> set[str]:
    return {key for keys in found.values() for key in keys}


def _in_order(
    foreign: Foreign, contract: Contract, found: Matches, left: Sequence[str]
) -> Matches:
    """Their vectors that have no match yet, filled with the contract's in its order."""
    open_keys = [key for key in left if not contract.observations[key].is_image]
    out: dict[str, tuple[str, ...]] = {}
    for vector in foreign.vectors:
        if vector.name in found:
            continue
        keys, size = list[str](), 0
        while open_keys and size < vector.size:
            keys.append(open_keys.pop(0))
            size += contract.observations[keys[-1]].size
        if size == vector.size:
            out[vector.name] = tuple(keys)
    return out


def _check_whole(foreign: Foreign, contract: Contract, found: Matches) -> None:
    streams = contract.observations
    for theirs in foreign.observations:
        kind = "camera" if isinstance(theirs, Camera) else "vector"
        keys = found.get(theirs.name, ())
        if not keys or any(streams[k].is_image != isinstance(theirs, Camera) for k in keys):
            free = [k for k, s in streams.items() if s.is_image == (kind == "camera")]
            known = ", ".join(f"{key} ({_size(contract, key)})" for key in free) or f"no {kind}"
            what = f"the checkpoint observes {theirs.text}, the contract {known}"
            cure = f"say which it is with --map KEY={theirs.name}, or mend the contract"
            raise UserError(what, contract.name, cure)
        sizes = [streams[key].shape for key in keys]
        wanted = theirs.shape if isinstance(theirs, Camera) else (theirs.size,)
        has = sizes[0] if isinstance(theirs, Camera) else (sum(shape[0] for shape in sizes),)
        if tuple(has) != tuple(wanted) or (kind == "camera" and len(keys) > 1):
            said = " and ".join(f"{key} ({_size(contract, key)})" for key in keys)
            what = f"the checkpoint observes {theirs.text}, the contract {said}"
            raise UserError(what, contract.name, f"set the shape to {list(wanted)}")
    if beyond := [key for key in streams if key not in _taken(found)]:
        what = f"the checkpoint does not observe {', '.join(beyond)}"
        raise UserError(what, contract.name, "leave it out of the contract")
    if contract.action_dim != foreign.action.size:
        what = f"the checkpoint commands {foreign.action.size} values, the contract "
        what += f"{contract.action_dim} ({', '.join(contract.action_names)})"
        raise UserError(what, contract.name, "give the action's fields that it was trained with")
    _check_grippers(foreign.action, contract)


def _check_grippers(action: Vector, contract: Contract) -> None:
    """A binary goes by the sign: of what is 0 to 1, or 0 to 100, it would never be open."""
    units, places = _units(contract, ACTION), contract.action.slices
    for part in contract.action.of_role("binary"):
        i = places[part.name].start
        center, spread = (float(values[i]) * units[i] for values in (action.center, action.spread))
        if not _has_signs(center, abs(spread)):
            told = f"{part.name} is about {center - spread:g} to {center + spread:g}"
            what = f"the checkpoint's {told}, a binary is -1 open and +1 closed"
            raise UserError(what, contract.name, f"give {part.name} the kind scalar")


def _has_signs(center: float, spread: float) -> bool:
    """Whether numbers that are scaled so may be -1 and +1.

    Of these the mean's square and the deviation's are 1 together, as are the middle's and the half
    range's; the original leaves a constant with a spread of 1.
    """
    are_signs = abs(center**2 + spread**2 - 1) < 0.1 or center == spread == 1
    return abs(center) + spread < 2.05 and (spread > center + 1e-6 or are_signs)


def _size(contract: Contract, key: str) -> str:
    return " x ".join(map(str, contract.observations[key].shape))


def table(foreign: Foreign, contract: Contract, matches: Matches) -> Iterator[str]:
    """What is what, for people to check."""
    rows = [(theirs.text, matches[theirs.name]) for theirs in foreign.observations]
    for text, keys in [*rows, (foreign.action.text, (ACTION,))]:
        ours = ", ".join(f"{key} ({_size(contract, key)})" for key in keys if key != ACTION)
        said = ours or ", ".join(contract.action_names)
        scaled = any(key == ACTION or not contract.observations[key].is_image for key in keys)
        scaled = scaled and any(unit != 1 for key in keys for unit in _units(contract, key))
        yield f"  {text:40} = {said}{', times their scale' if scaled else ''}"


def build(foreign: Foreign, contract: Contract, matches: Matches, name: str) -> DiffusionPolicy:
    """Our policy with their weights and statistics.

    Args:
        foreign: the policy.
        contract: the robot's.
        matches: see `match`.
        name: of its recipe.

    Raises:
        UserError: the weights are not those of the settings.
    """
    where = str(foreign.files[0]) if foreign.files else foreign.origin
    recipe = Recipe(name, _with_encoders(foreign, contract, matches))
    recipe = Recipe.from_text(recipe.to_text(), where)
    policy = DiffusionPolicy(recipe, contract)
    order = _order(foreign, contract, matches)
    state = {f"denoiser.{k}": v for k, v in _reordered(foreign, policy, order).items()}
    for vector in foreign.vectors:
        state |= _normalizers(vector, contract, matches[vector.name])
    state |= _normalizers(foreign.action, contract, (ACTION,))
    for camera in foreign.cameras:
        prefix = f"encoder.cameras.{module_name(matches[camera.name][0])}."
        state |= {prefix + key: tensor for key, tensor in camera.weights.items()}
    try:
        load_exactly(policy, {k: v.float() for k, v in state.items()}, where)
    except UserError as error:
        what = f"its weights are not those of its configuration: {error.what}"
        raise UserError(what, where, "copy all of it again") from None
    return policy.eval()


def _with_encoders(foreign: Foreign, contract: Contract, matches: Matches) -> PolicySettings:
    if not foreign.cameras:
        return foreign.settings
    keys = {camera.name: matches[camera.name][0] for camera in foreign.cameras}
    first = foreign.cameras[0]
    alike = [
        camera.weights is first.weights and camera.encoder == first.encoder
        for camera in foreign.cameras
    ]
    usual = dataclasses.replace(first.encoder, shared=len(alike) > 1 and all(alike))
    own = {keys[c.name]: c.encoder for c in foreign.cameras if c.encoder != first.encoder}
    return dataclasses.replace(foreign.settings, image_encoder=usual, image_encoders=own)


def _normalizers(vector: Vector, contract: Contract, keys: Sequence[str]) -> dict[str, Tensor]:
    """Their statistics in SI units, cut into those of the contract's keys."""
    state, begin = {}, 0
    for key in keys:
        unit = torch.tensor(_units(contract, key), dtype=torch.float64)
        prefix, part = f"normalizer.keys.{module_name(key)}.", slice(begin, begin + len(unit))
        state[f"{prefix}center"] = vector.center[part].double() * unit
        state[f"{prefix}spread"] = vector.spread[part].double() * unit
        begin += len(unit)
    return state


def _units(contract: Contract, key: str) -> list[float]:
    """What one unit of theirs is in SI: the contract's `scale`, as of an imported dataset."""
    streams = contract.action.commands if key == ACTION else (contract.observations[key],)
    size = contract.action_dim if key == ACTION else streams[0].size
    if sum(stream.size for stream in streams) != size:  # targets that become another form
        return [1.0] * size
    return [
        u
        for s in streams
        for u in (s.scale * s.size if len(s.scale) == 1 else s.scale) or (1.0,) * s.size
    ]


def _order(foreign: Foreign, contract: Contract, matches: Matches) -> Tensor:
    """Of each number of our frame, where it is in theirs: (Do,)."""
    places: dict[str, range] = {}
    begin = 0
    for theirs in foreign.observations:
        if isinstance(theirs, Camera):
            places[matches[theirs.name][0]] = range(begin, begin + theirs.features)
        else:
            inner = begin
            for key in matches[theirs.name]:
                places[key] = range(inner, inner + contract.observations[key].size)
                inner += contract.observations[key].size
        begin += theirs.features
    return torch.tensor([i for key in contract.observations for i in places[key]])


def _reordered(foreign: Foreign, policy: DiffusionPolicy, order: Tensor) -> Mapping[str, Tensor]:
    """Their network's weights, its inputs in the order of our frames."""
    if torch.equal(order, torch.arange(len(order))):
        return foreign.denoiser
    settings = policy.recipe.policy
    if settings.conditioned == "tokens":
        return _columns(foreign.denoiser, "cond_input.weight", order)
    if settings.conditioned == "global" and settings.denoiser.name == "unet1d":
        return reordered_film(foreign.denoiser, settings, order)
    names = ", ".join(o.name for o in foreign.observations)
    what = f"with {settings.conditioned} conditioning the order of observations cannot be changed"
    raise UserError(what, policy.contract.name, f"give them in this order: {names}")


def reordered_film(
    weights: Mapping[str, Tensor], settings: PolicySettings, order: Tensor
) -> dict[str, Tensor]:
    """A U-Net's weights whose frames' numbers are in another order.

    Args:
        weights: of a U-Net with a global condition.
        settings: gives To and the size of the embedded step, which comes first.
        order: (Do,), of each number of the new frame, where it is in the old one.
    """
    assert settings.denoiser.name == "unet1d"
    embedded = settings.denoiser.diffusion_step_embed_dim
    frames = [embedded + i * len(order) + order for i in range(settings.n_obs_steps)]
    return _columns(weights, "film.weight", torch.cat([torch.arange(embedded), *frames]))


def _columns(weights: Mapping[str, Tensor], name: str, order: Tensor) -> dict[str, Tensor]:
    return {k: v[:, order] if k.endswith(name) else v for k, v in weights.items()}
