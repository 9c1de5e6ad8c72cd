"""Weights that others trained, from a file: nothing is downloaded, nothing is unpickled.

`weights: FILE` of an image encoder is read when training begins; a checkpoint has them from then
on. Which file, from where, says `diffusion-policy weights`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.backbones import RESNETS, Timm
from diffusion_policy_ros.policy.checkpoint import (
    find_checkpoint,
    load_exactly,
    load_policy,
    sha256,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy

WHERE = "policy.image_encoder.weights"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FROM = "https://download.pytorch.org/models/"
# backbone -> files of torchvision, whose names end in the first digits of their SHA-256
KNOWN = {
    "resnet18": ("resnet18-f37072fd.pth",),
    "resnet34": ("resnet34-b627a593.pth",),
    "resnet50": ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"),
}
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.(pth|pt|safetensors)$")


def begin(policy: DiffusionPolicy) -> Iterator[str]:
    """Take over the weights that others trained, as the policy's recipe asks; says which.

    Raises:
        UserError: a file is missing, or does not fit.
    """
    for key, eye in policy.encoder.image_encoders.items():
        if (file := eye.settings.weights) is not None:
            given = read_weights(Path(file), eye.settings.weights_sha256)
            found = load_backbone(eye.backbone, eye.settings.name, given)
            left = f"; not used: {', '.join(found.left)}" if found.left else ""
            yield f"weights   {key}: {found.taken} tensors of {file}{left}"
        elif isinstance(eye.backbone, Timm) and eye.backbone.batch_norms:
            cure = "give them, or take a model with other norms"
            yield f"warning   {key}: {eye.settings.name} has batch norms and no weights; {cure}"
    if policy.recipe.training.init_from is not None:
        yield from begin_with(policy, Path(policy.recipe.training.init_from))


def begin_with(policy: DiffusionPolicy, checkpoint: Path) -> Iterator[str]:
    """Take over a checkpoint's averaged weights; says so, and which data reaches beyond theirs.

    Raises:
        UserError: there is none, or it is of another robot or network.
    """
    source, where = find_checkpoint(checkpoint), "training.init_from"
    given = load_policy(source, contract=policy.contract)
    keeps = policy.recipe.training.init_normalizer == "checkpoint"
    of_data = copy.deepcopy(policy.normalizer)
    ours = {k: v for k, v in policy.state_dict().items() if k.startswith("normalizer.")}
    state = given.state_dict()
    load_exactly(policy, state if keeps else state | ours, f"{where}: {source}")
    whose = "its statistics" if keeps else "this dataset's statistics"
    yield f"begins    with the weights of {source}, and {whose}"
    for key, times in policy.normalizer.reaches(of_data):
        cure = "training.init_normalizer=dataset takes the new range"
        yield f"warning   {key} reaches {times:.2g} times what it was scaled by; {cure}"


class Loaded(NamedTuple):
    """What became of a file.

    Attributes:
        taken: tensors of the backbone that are from it.
        left: its tensors that the backbone has no place for, such as the head's.
        fresh: tensors of the backbone that it does not give: norms that were replaced.
    """

    taken: int
    left: list[str]
    fresh: list[str]


def read_weights(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch state dict.

    Args:
        path: the file; where its name ends in `-XXXXXXXX.pth`, these are checked, too.
        digest: the beginning of its SHA-256, where it is known.

    Raises:
        UserError: there is no such file, its content is another's, or it holds more than tensors.
    """
    cure = "diffusion-policy weights says which file, and from where"
    if not path.is_file():
        raise UserError(f"no such file: {path}", WHERE, cure)
    named = HASH_IN_NAME.search(path.name)
    for expected in filter(None, (digest, named and named[1])):
        if not (found := sha256(path)).startswith(expected.lower()):
            what = f"{path} has the SHA-256 {found[:16]}..., not {expected[:16]}"
            raise UserError(what, WHERE, f"fetch it again; {cure}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {_short(error)}", WHERE, cure) from None
    except Exception as error:  # torch.load: what is no tensor is refused as an UnpicklingError
        what = f"{path} holds more than tensors: {_short(error)}"
        raise UserError(what, WHERE, "save its state_dict alone, as safetensors") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise UserError(f"{path} is no state dict", WHERE, "save its state_dict alone")
    return dict(loaded)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def resnet_name(theirs: str, kind: str) -> str | None:
    """Name of a ResNet's tensor, in torchvision's or by places -> ours; None for the head's.

    By places is `nn.Sequential(*resnet.children())`: 0 for conv1, 1 for bn1, 4 to 7 for the
    stages. LeRobot and the original's robomimic encoder save so.

    Args:
        theirs: such as `layer2.0.downsample.1.bias` or `5.0.downsample.1.bias`.
        kind: a key of RESNETS.
    """
    if theirs.endswith("num_batches_tracked"):
        return None
    name = re.sub(r"^([4-7])\.(?=\d)", lambda m: f"layer{int(m[1]) - 3}.", theirs)
    name = re.sub(r"^conv1\.", "0.", re.sub(r"^bn1\.", "1.", name))
    if re.match(r"[01]\.", name):
        return name
    found = re.match(r"layer([1-4])\.(\d+)\.(.+)", name)
    if found is None:
        return None
    index = 4 + sum(RESNETS[kind][1][: int(found[1]) - 1]) + int(found[2])
    rest = re.sub(r"^bn", "norm", found[3]).replace("downsample.", "around.")
    return f"{index}.{rest}"


def load_backbone(backbone: nn.Module, kind: str, given: Mapping[str, Tensor]) -> Loaded:
    """Load a backbone's weights; all of it but replaced norms must be there.

    A file's three colours serve one channel as their sum; channels beyond them begin at zero.

    Args:
        backbone: takes them.
        kind: its name in the recipe.
        given: name -> tensor, of torchvision, timm or ourselves.

    Raises:
        UserError: a tensor is missing or of another shape.
    """
    inner = backbone.model if isinstance(backbone, Timm) else backbone
    ours, named = inner.state_dict(), dict(given)
    if kind in RESNETS and not given.keys() <= ours.keys():
        renamed = {resnet_name(name, kind): tensor for name, tensor in given.items()}
        named = {name: tensor for name, tensor in renamed.items() if name is not None}
    replaced = set()
    if not any(name.endswith("running_mean") for name in ours):
        replaced = {n.rpartition(".")[0] for n in named if n.endswith("running_mean")}
    usable = {n: t for n, t in named.items() if n in ours and n.rpartition(".")[0] not in replaced}
    taken = {name: _fitted(name, tensor, ours[name], inner) for name, tensor in usable.items()}
    fresh = [name for name in ours if name not in taken]
    for name in fresh:
        if name.rpartition(".")[0] not in replaced:
            raise UserError(f"{kind} needs '{name}', which the file lacks", WHERE, _CURE)
    inner.load_state_dict(taken, strict=False)
    return Loaded(len(taken), sorted(given.keys() - usable.keys())[:8], fresh)


_CURE = "give the file of this backbone; diffusion-policy weights says which"


def _fitted(name: str, theirs: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    if theirs.shape == ours.shape:
        return theirs
    if name == "pos_embed" and theirs.ndim == ours.ndim == 3:
        from timm.layers import resample_abs_pos_embed

        grid = model.patch_embed.grid_size  # type: ignore[union-attr]
        prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
        out: Tensor = resample_abs_pos_embed(theirs, grid, num_prefix_tokens=prefix)
        return out
    alike = theirs.ndim == ours.ndim == 4 and theirs.shape[2:] == ours.shape[2:]
    if alike and theirs.shape[0] == ours.shape[0] and theirs.shape[1] == 3:
        if ours.shape[1] == 1:
            return theirs.sum(1, keepdim=True)
        if ours.shape[1] > 3:
            beyond = torch.zeros_like(ours[:, 3:], device=theirs.device)
            return torch.cat([theirs, beyond], dim=1)
    what = f"'{name}' is {tuple(theirs.shape)}, needed {tuple(ours.shape)}"
    raise UserError(what, WHERE, _CURE)
