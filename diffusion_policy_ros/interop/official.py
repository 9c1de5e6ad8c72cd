"""The reference implementation's networks (real-stanford/diffusion_policy) under its own names.

    net = build_unet1d(config, state_dict)       # net(sample, timestep, local_cond, global_cond)
    net = build_transformer(config, state_dict)  # net(sample, timestep, cond)

Every configuration that its constructors take and its networks can run is taken here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_policy_ros.errors import UserError, UserErrors, did_you_mean
from diffusion_policy_ros.policy.denoisers.condition import Condition, Sizes
from diffusion_policy_ros.policy.denoisers.transformer import Transformer, TransformerSettings
from diffusion_policy_ros.policy.denoisers.unet1d import ResidualBlock, UNet1D, UNet1DSettings
from diffusion_policy_ros.strict_yaml import Problem

_REQUIRED = object()

# The reference constructors' arguments and their defaults.
UNET1D_DEFAULTS: dict[str, Any] = {
    "input_dim": _REQUIRED,
    "local_cond_dim": None,
    "global_cond_dim": None,
    "diffusion_step_embed_dim": 256,
    "down_dims": (256, 512, 1024),
    "kernel_size": 3,
    "n_groups": 8,
    "cond_predict_scale": False,
}
TRANSFORMER_DEFAULTS: dict[str, Any] = {
    "input_dim": _REQUIRED,
    "output_dim": _REQUIRED,
    "horizon": _REQUIRED,
    "n_obs_steps": None,
    "cond_dim": 0,
    "n_layer": 12,
    "n_head": 12,
    "n_emb": 768,
    "p_drop_emb": 0.1,
    "p_drop_attn": 0.1,
    "causal_attn": False,
    "time_as_cond": True,
    "obs_as_cond": False,  # overwritten by its constructor: true where cond_dim > 0
    "n_cond_layers": 0,
}

FINAL_GROUPS = 8  # the reference's last block leaves n_groups at its own default

Names = Sequence[tuple[str, str]]
Arguments = dict[str, Any]

# Applied in order; the reference's names -> ours.
_UNET1D_NAMES: Names = (
    (r"^diffusion_step_encoder\.", "step_encoder."),
    (r"^local_cond_encoder\.0\.", "local."),
    (r"^(down|up)_modules\.(\d+)\.0\.", r"\1.\2.first."),
    (r"^(down|up)_modules\.(\d+)\.1\.", r"\1.\2.second."),
    (r"^(down|up)_modules\.(\d+)\.2\.conv\.", r"\1.\2.resize."),
    (r"^mid_modules\.", "middle."),
    (r"(^|\.)blocks\.0\.block\.", r"\1first.block."),
    (r"(^|\.)blocks\.1\.block\.", r"\1second.block."),
    (r"(^|\.)cond_encoder\.1\.", r"\1film."),
    (r"(^|\.)residual_conv\.", r"\1around."),
    (r"^final_conv\.0\.", "final."),
    (r"^final_conv\.1\.", "out."),
    (r"(^|\.)block\.0\.", r"\1conv."),
    (r"(^|\.)block\.1\.", r"\1norm."),
)
_TRANSFORMER_NAMES: Names = (
    (r"^input_emb\.", "input."),
    (r"^pos_emb$", "position"),
    (r"^cond_obs_emb\.", "cond_input."),
    (r"^cond_pos_emb$", "cond_position"),
    (r"^encoder\.layers\.", "cond_encoder."),
    (r"^encoder\.(\d)", r"cond_encoder.\1"),
    (r"^decoder\.layers\.", "layers."),
    (r"^ln_f\.", "norm."),
    (r"^head\.", "out."),
)
_ENCODER_ONLY_NAMES: Names = ((r"^encoder\.layers\.", "layers."), *_TRANSFORMER_NAMES)

UNUSED_LOCAL = "local_cond_encoder.1."
DUMMY = "_dummy_variable"  # no numbers; the reference finds its device with it


class OfficialUNet1D(nn.Module):
    """Our U-Net called as the reference calls its own.

    Args:
        net: the network.
        settings: its settings.
        unused: the reference has a second encoder of the local condition, for the way up, but
            never adds what it gives: its `idx == len(self.up_modules)` is never true. Published
            weights were trained so, and these are their numbers: it is kept here, and not run.
    """

    def __init__(
        self, net: UNet1D, settings: UNet1DSettings, unused: ResidualBlock | None = None
    ) -> None:
        super().__init__()
        self.net, self.unused, self.settings = net, unused, settings

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise, or whatever it was trained for.

        Args:
            sample: (B, H, input_dim).
            timestep: a number, or (B,).
            local_cond: (B, H, local_cond_dim).
            global_cond: (B, global_cond_dim).

        Raises:
            UserError: H cannot be halved; names the nearest that can.
        """
        problem = self.settings.horizon_problem(sample.shape[1])
        if problem is not None:
            raise UserError(problem.what, problem.key, problem.cure)
        condition = Condition(global_cond, local_cond)
        out: Tensor = self.net(sample, _each_step(timestep, sample), condition)
        return out


class OfficialTransformer(nn.Module):
    """Our Transformer called as the reference calls its own."""

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, sample: Tensor, timestep: Tensor | float, cond: Tensor | None = None
    ) -> Tensor:
        """Predict the noise, or whatever it was trained for: (B, T, output_dim).

        Args:
            sample: (B, T, input_dim), T up to the horizon.
            timestep: a number, or (B,).
            cond: (B, To, cond_dim), To up to n_obs_steps; ignored where cond_dim is 0, as there.
        """
        tokens = cond if self.net.token_dim else None
        out: Tensor = self.net(sample, _each_step(timestep, sample), Condition(tokens=tokens))
        return out


def _each_step(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """(B,) steps; a plain number is cut to a whole one, as there."""
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor(int(timestep))
    return timestep.to(sample.device).expand(sample.shape[0])


def build_unet1d(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> OfficialUNet1D:
    """The network that ConditionalUnet1D(**config) with these weights is, in eval mode.

    Args:
        config: the reference constructor's arguments.
        state_dict: its weights under its names.

    Raises:
        UserError: for unknown or impossible arguments, or weights that do not fit.
    """
    full = arguments("ConditionalUnet1D", config, UNET1D_DEFAULTS)
    settings = unet1d_settings(full)
    _refuse("ConditionalUnet1D", [*settings.problems()])
    local, told = full["local_cond_dim"] or 0, full["global_cond_dim"] or 0
    sizes = Sizes(full["input_dim"], global_cond=told, local_cond=local)
    unused = None
    if local:
        embed = settings.diffusion_step_embed_dim
        unused = ResidualBlock(local, settings.down_dims[0], embed + told, settings)
    net = OfficialUNet1D(UNet1D(sizes, settings), settings, unused)
    _load(net, _placed(state_dict, _unet1d_place))
    return net.eval()


def unet1d_settings(full: Arguments) -> UNet1DSettings:
    """Our settings of ConditionalUnet1D with these arguments, see `arguments`."""
    return UNet1DSettings(
        down_dims=tuple(full["down_dims"]),
        kernel_size=full["kernel_size"],
        n_groups=full["n_groups"],
        final_n_groups=FINAL_GROUPS,
        diffusion_step_embed_dim=full["diffusion_step_embed_dim"],
        cond_predict_scale=full["cond_predict_scale"],
    )


def unet1d_name(name: str) -> str:
    """Our name of the parameter that the reference's ConditionalUnet1D calls `name`."""
    return _renamed(name, _UNET1D_NAMES)


def _unet1d_place(name: str) -> str:
    if name.startswith(UNUSED_LOCAL):
        return "unused." + unet1d_name(name.removeprefix(UNUSED_LOCAL))
    return "net." + unet1d_name(name)


def transformer_name(name: str, time_as_cond: bool = True) -> str:
    """Our name of the parameter that the reference's TransformerForDiffusion calls `name`."""
    return _renamed(name, _TRANSFORMER_NAMES if time_as_cond else _ENCODER_ONLY_NAMES)


def transformer_settings(full: Arguments) -> TransformerSettings:
    """Our settings of TransformerForDiffusion with these arguments, see `arguments`."""
    names = TransformerSettings.__dataclass_fields__.keys() - {"name"}
    return TransformerSettings(**{name: full[name] for name in names})


def build_transformer(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> OfficialTransformer:
    """The network that TransformerForDiffusion(**config) with these weights is, in eval mode.

    Args:
        config: the reference constructor's arguments.
        state_dict: its weights and masks under its names.

    Raises:
        UserError: for unknown or impossible arguments, or weights that do not fit.
    """
    full = arguments("TransformerForDiffusion", config, TRANSFORMER_DEFAULTS)
    settings = transformer_settings(full)
    _refuse("TransformerForDiffusion", [*settings.problems(), *_token_problems(full)])
    observed = full["horizon"] if full["n_obs_steps"] is None else full["n_obs_steps"]
    sizes = Sizes(full["input_dim"], full["horizon"])
    if full["cond_dim"] > 0:
        sizes = sizes._replace(tokens=observed, token_dim=full["cond_dim"])
    net = OfficialTransformer(Transformer(sizes, settings, full["output_dim"]))
    as_cond = settings.time_as_cond
    weights = _placed(state_dict, lambda name: f"net.{transformer_name(name, as_cond)}")
    weights.pop(f"net.{DUMMY}", None)
    for mask in ("mask", "memory_mask"):
        _take_mask(net.net, mask, weights)
    _load(net, weights)
    return net.eval()


def _token_problems(full: Mapping[str, Any]) -> Iterable[Problem]:
    if full["cond_dim"] > 0 and not full["time_as_cond"]:
        what = "observations are tokens of the condition, the step is not"
        yield Problem("time_as_cond", what, "use true, or cond_dim 0")


def _take_mask(net: Transformer, name: str, weights: dict[str, Tensor]) -> None:
    """There, masks are among the weights; ours follow from the settings."""
    ours, theirs = getattr(net, name), weights.pop(f"net.{name}", None)
    if ours is None and theirs is None:
        return
    if ours is None or theirs is None or not torch.equal(ours, theirs.to(ours)):
        what = f"'{name}' is not the one of causal_attn = {net.mask is not None}"
        raise UserError(what, "state_dict", "give the config that it was made with")


def arguments(what: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Arguments:
    """All arguments of a constructor: the given ones, and defaults.

    Raises:
        UserError: one is unknown, or missing.
    """
    for key in config:
        if key not in defaults:
            raise UserError(f"unknown argument '{key}'", what, did_you_mean(key, defaults))
    full = {**defaults, **config}
    missing = [key for key, value in full.items() if value is _REQUIRED]
    if missing:
        raise UserError(f"no {', '.join(missing)}", what, "give all arguments without a default")
    return full


def _refuse(where: str, problems: Sequence[Problem]) -> None:
    if problems:
        errors = [UserError(f"{p.key}: {p.what}", where, p.cure) for p in problems]
        raise UserErrors(errors)


def _renamed(name: str, names: Names) -> str:
    for pattern, ours in names:
        name = re.sub(pattern, ours, name)
    return name


def _placed(state: Mapping[str, Tensor], place: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors under our names; two that would be the same one are a mistake."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if place(name) in found:
            raise UserError(f"'{name}' is there twice", "state_dict", "remove one of the two")
        found[place(name)] = tensor
    return found


def _load(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        net.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        what = "weights do not fit: " + " ".join(str(error).split())[:300]
        raise UserError(what, "state_dict", "give the config that they were made with") from error
