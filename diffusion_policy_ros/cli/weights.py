"""`diffusion-policy weights [BACKBONE] [FILE]`: pretrained weights: which file, from where."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "weights",
        help="pretrained weights of a backbone: which file, from where, with which hash",
        description="Say which file of pretrained weights a backbone takes, where it is, and what "
        "to write into the recipe. Nothing is downloaded. With a FILE, check it.",
    )
    parser.add_argument(
        "backbone", nargs="?", metavar="BACKBONE", help="resnet18, resnet34, resnet50 or timm/NAME"
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="to be checked")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it.

    Raises:
        UserError: there is no such backbone, or the file is not its.
    """
    from diffusion_policy_ros.policy.backbones import TIMM
    from diffusion_policy_ros.policy.pretrained import KNOWN

    for name in [args.backbone] if args.backbone else KNOWN:
        print("\n".join(_timm_lines(name) if name.startswith(TIMM) else _resnet_lines(name)))
    if args.file is not None:
        print(_checked(args.backbone, args.file))
    return 0


def _resnet_lines(name: str) -> Iterator[str]:
    from diffusion_policy_ros.errors import UserError, did_you_mean
    from diffusion_policy_ros.policy.pretrained import FROM, IMAGENET_MEAN, IMAGENET_STD, KNOWN

    if name not in KNOWN:
        cure = did_you_mean(name, [*KNOWN, "timm/NAME"])
        raise UserError(f"no pretrained weights of '{name}' are known", "BACKBONE", cure)
    for file in KNOWN[name]:
        digits = file.rpartition("-")[2].partition(".")[0]
        yield f"{name}  {FROM}{file}  SHA-256 {digits}..., checked by the name"
    yield from _recipe_lines(name, KNOWN[name][0], IMAGENET_MEAN, IMAGENET_STD, "norm: frozen, ")


def _timm_lines(name: str) -> Iterator[str]:
    from diffusion_policy_ros.errors import UserError, did_you_mean
    from diffusion_policy_ros.policy.backbones import TIMM, import_timm

    timm, model = import_timm(), name.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if config is None:
        cure = did_you_mean(model.partition(".")[0], timm.list_models())
        raise UserError(f"timm has no weights of '{model}'", "BACKBONE", cure)
    hub = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else ""
    where = f"{hub}: model.safetensors" if hub else config.url or "timm knows of no weights"
    size = " x ".join(map(str, config.input_size[1:]))
    yield f"{name}  {where}; its page shows the SHA-256"
    yield f"  trained on {size}, licence {config.license or 'not stated'}"
    yield from _recipe_lines(name, "model.safetensors", config.mean, config.std, "")


def _recipe_lines(
    name: str, file: str, mean: tuple[float, ...], std: tuple[float, ...], norm: str
) -> Iterator[str]:
    yield (
        f"  image_encoder: {{name: {name}, {norm}weights: FOLDER/{file}, "
        f"mean: {list(mean)}, std: {list(std)}}}"
    )


def _checked(backbone: str, file: Path) -> str:
    """What of a file the backbone takes."""
    from diffusion_policy_ros.contract import Stream
    from diffusion_policy_ros.policy.checkpoint import sha256
    from diffusion_policy_ros.policy.eyes import ImageEncoder, ImageEncoderSettings
    from diffusion_policy_ros.policy.pretrained import load_backbone, read_weights

    given = read_weights(file)
    picture = Stream("camera", "sensor_msgs/msg/Image", (224, 224, 3), name="camera")
    frozen = any(name.endswith("running_mean") for name in given)
    settings = ImageEncoderSettings(
        name=backbone, crop=1.0, pool="mean", norm="frozen" if frozen else "group"
    )
    found = load_backbone(ImageEncoder(picture, settings).backbone, backbone, given)
    return f"{file}: {found.taken} tensors fit, SHA-256 {sha256(file)}"
