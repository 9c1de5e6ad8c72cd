"""Recipe: everything about a policy and its training that is not the robot.

One YAML file, as strict as the contract: every mistake is reported at once. Shipped ones are in
`config/recipes/`; the command line overrides single keys (`training.updates=500`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from diffusion_policy_ros import strict_yaml
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.denoisers import DenoiserSettings
from diffusion_policy_ros.policy.denoisers.unet1d import UNet1DSettings
from diffusion_policy_ros.policy.eyes import ImageEncoderSettings, TemporalEncoderSettings
from diffusion_policy_ros.policy.frames import FrameSettings
from diffusion_policy_ros.policy.normalizer import NormalizationSettings
from diffusion_policy_ros.shipped import read_config
from diffusion_policy_ros.strict_yaml import Problem


def _within(default: Any, low: float, high: float, free: bool = False) -> Any:
    """A field with a default and a range that the reader checks."""
    return dataclasses.field(default=default, metadata={"min": low, "max": high, "free": free})


def _free(default: Any) -> Any:
    """A field that may be another one when a training is resumed."""
    return dataclasses.field(default=default, metadata={"free": True})


@dataclass(frozen=True)
class PolicySettings(FrameSettings):
    """What the policy is, and how it sees poses. The words are those of doc/design.md.

    Attributes:
        n_obs_steps: To, observed frames.
        horizon: H, predicted actions, the first at the oldest observed frame.
        n_action_steps: Ta, executed actions, the first at the newest observed frame.
        replan_steps: frames between inferences; half of n_action_steps where not given, so that
            a chunk lasts until the next one has been computed.
        prediction_type: what the denoiser predicts.
        schedule: a key of SCHEDULES.
        num_train_timesteps: T, diffusion steps of training.
        beta_start: first beta of the linear schedule.
        beta_end: last beta of the linear schedule.
        sampler: a key of SAMPLERS, used where none is asked for.
        num_inference_steps: K, used where none is asked for.
        timestep_spacing: which of the T steps the K are, see inference_timesteps.
        clip_sample: keep the predicted clean actions within +-clip_range, normalised.
        clip_range: 1 is the range of the data where that is normalised by its limits.
        variance: of the noise that ddpm adds: the posterior's, or beta.
        eta: noise that ddim adds: 0 is none, 1 is that of ddpm.
        normalization: how observations and actions are scaled.
        conditioning: how the denoiser is told of the observations; its own choice where not given.
            "global": all frames in one vector; "tokens": each frame is attended to; "local":
            frames beside the steps that they belong to; "inpainting": actions and observations are
            denoised together, the observed ones given.
        pred_action_steps_only: predict the n_action_steps that are executed instead of all H.
        condition_dropout: share of training windows whose observation is replaced by a learned
            null, so that the policy can be sampled with guidance (Ho and Salimans 2022,
            arxiv.org/abs/2207.12598).
        observation_dropout: what older recipes wrote instead; the null is zeros.
        denoiser: the network.
        image_encoder: of every camera.
        image_encoders: exceptions, observation key -> that camera's own.
        temporal_encoder: of the window, for the global condition; none puts frames in a row.
        task_features: size of a task's learned embedding, in each frame's features.
    """

    n_obs_steps: int = _within(2, 1, 1000)
    horizon: int = _within(16, 1, 10_000)
    n_action_steps: int = _within(8, 1, 10_000)
    replan_steps: int | None = _within(None, 1, 10_000)
    prediction_type: Literal["epsilon", "sample", "v"] = "epsilon"
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    num_train_timesteps: int = _within(100, 1, 100_000)
    beta_start: float = _within(1e-4, 1e-9, 0.999)
    beta_end: float = _within(0.02, 1e-9, 0.999)
    sampler: Literal["ddim", "ddpm", "dpmpp_2m"] = "ddim"
    num_inference_steps: int = _within(10, 1, 100_000)
    timestep_spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    clip_sample: bool = True
    clip_range: float = _within(1.0, 1e-3, 1e6)
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small"
    eta: float = _within(0.0, 0.0, 1.0)
    normalization: NormalizationSettings = NormalizationSettings()
    conditioning: Literal["global", "tokens", "local", "inpainting"] | None = None
    pred_action_steps_only: bool = False
    condition_dropout: float = _within(0.0, 0.0, 0.99)
    observation_dropout: float = _within(0.0, 0.0, 0.99)
    denoiser: DenoiserSettings = UNet1DSettings()
    image_encoder: ImageEncoderSettings = ImageEncoderSettings()
    image_encoders: dict[str, ImageEncoderSettings] = dataclasses.field(default_factory=dict)
    temporal_encoder: TemporalEncoderSettings | None = None
    task_features: int = _within(16, 1, 4096)

    @property
    def conditioned(self) -> str:
        """conditioning, or its default."""
        return self.conditioning or self.denoiser.conditionings[0]

    @property
    def predicted(self) -> slice:
        """Which of the H actions the network predicts."""
        first = self.n_obs_steps - 1 if self.pred_action_steps_only else 0
        last = first + self.n_action_steps if self.pred_action_steps_only else self.horizon
        return slice(first, last)

    @property
    def predicted_steps(self) -> int:
        """How many actions the network predicts."""
        return self.n_action_steps if self.pred_action_steps_only else self.horizon

    @property
    def executed(self) -> slice:
        """Which of the predicted actions are executed."""
        first = 0 if self.pred_action_steps_only else self.n_obs_steps - 1
        return slice(first, first + self.n_action_steps)

    @property
    def training_obs_steps(self) -> int:
        """Observed frames of a window in training; inpainting learns to predict later ones."""
        return self.horizon if self.conditioned == "inpainting" else self.n_obs_steps

    @property
    def hidden_share(self) -> float:
        """Share of training windows whose observation is hidden."""
        return self.condition_dropout or self.observation_dropout

    def check_guidance(self, scale: float, where: str) -> None:
        """Refuse a scale of guidance that the policy cannot be sampled with.

        Raises:
            UserError: it is not 1 but the policy was trained without, or is no number from 0 on.
        """
        if scale != 1.0 and not self.hidden_share:
            raise UserError(f"{scale:g}", where, "use 1: it was trained without guidance")
        if not 0.0 <= scale < float("inf"):
            raise UserError(f"{scale:g}", where, "use 0 or more; 1 is none")

    @property
    def clip(self) -> float | None:
        """Bound of predicted clean actions, normalised; None for no bound."""
        return self.clip_range if self.clip_sample else None

    @property
    def frames_between_inferences(self) -> int:
        """replan_steps, or its default."""
        half = max(1, self.n_action_steps // 2)
        return half if self.replan_steps is None else self.replan_steps

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        longest = self.horizon - self.n_obs_steps + 1
        if self.n_action_steps > longest:
            what = f"{self.n_action_steps} actions, but only {longest} follow the newest frame"
            cure = "lower it, or raise horizon: horizon >= n_obs_steps - 1 + n_action_steps"
            yield Problem("n_action_steps", what, cure)
        if self.frames_between_inferences > self.n_action_steps:
            what = f"{self.replan_steps}, but a chunk lasts {self.n_action_steps} frames"
            yield Problem("replan_steps", what, "use n_action_steps or less")
        if self.num_inference_steps > self.num_train_timesteps:
            what = f"{self.num_inference_steps}, trained with {self.num_train_timesteps}"
            cure = f"use 1 to {self.num_train_timesteps}"
            yield Problem("num_inference_steps", what, cure)
        horizon = self.denoiser.horizon_problem(self.predicted_steps)
        if horizon is not None:
            key = "n_action_steps" if self.pred_action_steps_only else "horizon"
            yield horizon._replace(key=key)
        yield from self._conditioning_problems()

    def _conditioning_problems(self) -> Iterator[Problem]:
        known, how = self.denoiser.conditionings, self.conditioned
        if how not in known:
            what = f"{self.denoiser.name} has no {how} conditioning with these settings"
            yield Problem("conditioning", what, f"use {' or '.join(known)}")
        if self.pred_action_steps_only and how not in ("global", "tokens"):
            what = f"{how} conditioning needs the observed steps"
            yield Problem("pred_action_steps_only", what, "use false, or another conditioning")
        key = "condition_dropout" if self.condition_dropout else "observation_dropout"
        if self.hidden_share and how == "inpainting":
            what = "inpainting has no condition to hide"
            yield Problem(key, what, "use 0, or another conditioning")
        if self.condition_dropout and self.observation_dropout:
            what = "condition_dropout is given, too"
            yield Problem("observation_dropout", what, "leave it out")
        if self.temporal_encoder is not None and how != "global":
            what = f"{how} conditioning takes each frame by itself"
            yield Problem("temporal_encoder", what, "leave it out, or use conditioning: global")
        if self.tasks and how == "inpainting":
            yield Problem("tasks", "inpainting would predict the task", "use another conditioning")
        if len(set(self.tasks)) < len(self.tasks) or "" in self.tasks:
            yield Problem("tasks", f"{list(self.tasks)}", "name each task once")


@dataclass(frozen=True)
class TrainingSettings:
    """How it is trained.

    Attributes:
        seed: of weights, batches, noise and the choice of held-out episodes.
        batch_size: windows an update.
        noise_samples: draws of noise and step for each window of a batch, which is encoded once.
        updates: length of training.
        decay_updates: length of the learning rate's cosine; `updates` where not given.
        lr: highest learning rate.
        betas: of AdamW.
        weight_decay: of AdamW; biases, norms and learned positions have none.
        encoder_lr: highest learning rate of the image encoders; lr where not given, 0 freezes.
        encoder_weight_decay: of the image encoders; as the rest where not given.
        warmup_updates: learning rate rises from 0 to lr over these.
        grad_clip: longest gradient (2-norm of all weights); 0 for any.
        ema_decay: of the averaged weights, which are what runs; reached as (1 + n) / (10 + n).
        mask_padding: padded actions beyond an episode's ends do not count in the loss.
        loss_weighting: how much each diffusion step counts, see objective.step_weights.
        min_snr_gamma: bound of the signal-to-noise ratio with min_snr.
        pad_after: actions of a window beyond its episode's end, at most; any where not given.
        include_failed: learn from episodes, too, that the recorder marked as failed.
        validation_fraction: share of demonstrations held out; the dataset may say which instead.
        val_every: updates between validations; 0 for only the last.
        val_windows: windows that a validation looks at, at most.
        checkpoint_every: updates between checkpoints; 0 for only the last.
        keep_checkpoints: how many of them are kept; 0 for all.
        log_every: updates between lines of loss.csv.
        batch_shares: parts of each batch that are computed side by side on a CPU. Two shares with
            a thread each are faster than one with two threads, and do not collapse where something
            else is running. Where several processes train, each computes its parts in turn.
        readers: threads that read batches ahead, each one; batches and their order are the same
            for any number.
        threads: of each share's computation on a CPU; 0 divides torch's own choice among them.
        device: "auto" is the GPU when there is one.
        gradient_accumulation: parts of each batch that are computed one after another, for less
            memory; batch_size is what an update sees all the same.
        precision: "tf32" lets a GPU round products' factors to 10 bits; "bfloat16" computes the
            networks in mixed precision. Weights stay float32.
        compile: torch.compile the networks; takes a minute before the first update.
        metric: by which checkpoints are compared: of a validation, or of `eval_sim`.
        keep_best: how many of the best checkpoints are kept besides the newest ones; a run's name
            then means the best. 0 for none.
        early_stop: measurements of the metric without a better one after which training ends; the
            best checkpoint is kept. 0 never does.
        eval_sim: a simulator that the averaged policy is driven in now and then, from the seeds
            for tuning; none evaluates nothing.
        eval_every: updates between; 0 for only after the last.
        eval_episodes: how many.
        tensorboard: write event files where the tensorboard package is installed.
        wandb_project: of Weights & Biases, to log to; none does not.
        init_from: checkpoint or run whose weights training begins with; none begins anew.
        init_normalizer: whose statistics scale the numbers then: the "checkpoint"'s, which its
            weights were trained with, or this "dataset"'s.
    """

    seed: int = _within(0, 0, 2**31 - 1)
    batch_size: int = _within(64, 1, 65536)
    noise_samples: int = _within(1, 1, 1024)
    updates: int = _within(50_000, 1, 10**9, free=True)
    decay_updates: int | None = _within(None, 1, 10**9, free=True)
    lr: float = _within(1e-4, 1e-12, 10.0)
    betas: tuple[float, ...] = (0.95, 0.999)
    weight_decay: float = _within(1e-6, 0.0, 10.0)
    encoder_lr: float | None = _within(None, 0.0, 10.0)
    encoder_weight_decay: float | None = _within(None, 0.0, 10.0)
    warmup_updates: int = _within(500, 0, 10**9)
    grad_clip: float = _within(1.0, 0.0, 1e9)
    ema_decay: float = _within(0.999, 0.0, 1.0)
    mask_padding: bool = True
    loss_weighting: Literal["plain", "min_snr"] = "plain"
    min_snr_gamma: float = _within(5.0, 1e-6, 1e6)
    pad_after: int | None = _within(None, 0, 10_000)
    include_failed: bool = False
    validation_fraction: float = _within(0.02, 0.0, 0.9)
    val_every: int = _within(1000, 0, 10**9, free=True)
    val_windows: int = _within(256, 1, 10**9, free=True)
    checkpoint_every: int = _within(5000, 0, 10**9, free=True)
    keep_checkpoints: int = _within(3, 0, 10**6, free=True)
    log_every: int = _within(20, 1, 10**9, free=True)
    batch_shares: int = _within(1, 1, 64, free=True)
    readers: int = _within(2, 1, 256, free=True)
    threads: int = _within(0, 0, 1024, free=True)
    device: str = _free("auto")
    gradient_accumulation: int = _within(1, 1, 65536, free=True)
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    compile: bool = _free(False)
    metric: Literal["val_action_error", "val_loss", "success"] = "val_action_error"
    keep_best: int = _within(0, 0, 10**6, free=True)
    early_stop: int = _within(0, 0, 10**6, free=True)
    eval_sim: str | None = _free(None)
    eval_every: int = _within(5000, 0, 10**9, free=True)
    eval_episodes: int = _within(20, 1, 10_000, free=True)
    tensorboard: bool = _free(True)
    wandb_project: str | None = _free(None)
    init_from: str | None = None
    init_normalizer: Literal["checkpoint", "dataset"] = "checkpoint"

    def fixed(self) -> dict[str, Any]:
        """What a resumed training must not change; how long it is, how watched and where may."""
        fields = [f.name for f in dataclasses.fields(self) if not f.metadata.get("free")]
        return {name: getattr(self, name) for name in fields}

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them that types cannot show."""
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield Problem("betas", f"{list(self.betas)}", "give two numbers from 0 to below 1")
        key = "early_stop" if self.early_stop else "keep_best"
        validates = self.val_every and self.validation_fraction
        if (self.early_stop or self.keep_best) and self.metric != "success" and not validates:
            what = "there is no validation to judge by"
            cure = "use 0, or set val_every and validation_fraction"
            yield Problem(key, what, cure)
        if self.metric == "success" and self.eval_sim is None:
            yield Problem("metric", "there is no simulator", "name one in eval_sim")


@dataclass(frozen=True)
class DataSettings:
    """A dataset to learn from.

    Attributes:
        path: its folder.
        weight: how often each of its windows is drawn, beside those of the others.
        where: which episodes, such as "success=true, tag=clean"; all where not given.
    """

    path: str
    weight: float = _within(1.0, 0.0, 1e6)
    where: str = ""


@dataclass(frozen=True)
class Recipe:
    """A policy and its training.

    Attributes:
        name: what the recipe is called in logs and cards.
        policy: what the policy is.
        training: how it is trained.
        data: the datasets, of one meaning; none where `train --dataset` names it.
    """

    name: str = "recipe"
    policy: PolicySettings = PolicySettings()
    training: TrainingSettings = TrainingSettings()
    data: tuple[DataSettings, ...] = ()

    @classmethod
    def from_text(
        cls, text: str, where: str = "recipe", overrides: Mapping[str, str] | None = None
    ) -> Recipe:
        """Read YAML text; `overrides` (dotted key -> YAML text) win.

        Raises:
            UserErrors: every mistake with key, line and cure.
        """
        return strict_yaml.parse(cls, text, where, dict(overrides or {}))

    @classmethod
    def load(cls, name: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
        """Read a file, or a shipped recipe by its name.

        Raises:
            UserError: there is no such file, or it has mistakes.
        """
        return cls.from_text(*read_config("recipes", name), overrides)

    def to_text(self) -> str:
        """YAML with every key written out; `from_text` reads it back equal."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words of a command line -> dotted key -> YAML text.

    Raises:
        UserError: for a word without a key or without "=".
    """
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.strip():
            raise UserError(
                f"'{word}' is no setting", "command line", "write training.updates=500"
            )
        found[key.strip()] = value
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, tuple | list) else value
