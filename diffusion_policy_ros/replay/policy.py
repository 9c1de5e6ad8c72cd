"""What makes the chunks of a replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.policy.tasks import check_task
from diffusion_policy_ros.runtime.inference import Request, infer
from diffusion_policy_ros.runtime.joining import Joiner
from diffusion_policy_ros.runtime.provenance import SAMPLING, Provenance
from diffusion_policy_ros.runtime.sampling import Sampling
from diffusion_policy_ros.runtime.tail import Chunk


@dataclass(frozen=True)
class Policy:
    """How chunks are made.

    Attributes:
        engine: samples the policy.
        sampling: how, up to the horizon; ``replan_steps`` frames lie between two chunks.
        seed: of the noise.
        given: which of seed and sampling the user gave, so that a recorded run's do not count.
    """

    engine: Engine
    sampling: Sampling
    seed: int = 0
    given: frozenset[str] = frozenset()

    @property
    def contract(self) -> Contract:
        """The robot."""
        return self.engine.policy.contract

    @property
    def n_obs_steps(self) -> int:
        """To, the frames of a window."""
        return self.engine.policy.recipe.policy.n_obs_steps

    def chunk(
        self,
        window: Mapping[str, Array],
        time_ns: int,
        joiner: Joiner,
        delay_frames: int = 0,
    ) -> Chunk:
        """The chunk after a window whose newest frame is of that time; joins those before.

        Raises:
            UserError: the inference failed.
        """
        request = Request(time_ns, window, self.sampling, self.seed, joiner, delay_frames)
        inference = infer(self.engine, self.contract, request)
        if inference.chunk is None:
            what = f"{inference.failure} after the frame stamped {time_ns / 1e9:.3f} s"
            raise UserError(what, "checkpoint", "do not run it; train again")
        return inference.chunk

    def for_task(self, task: str, where: str) -> Policy:
        """Of a recording's task, where the policy knows several and nobody gave one.

        Raises:
            UserError: it was not trained.
        """
        tasks = self.engine.policy.recipe.policy.tasks
        if not tasks or "task" in self.given or (len(tasks) == 1 and not task):
            return self
        check_task(task, tasks, where)
        return replace(self, sampling=replace(self.sampling, task=task))

    def as_recorded(self, made: Provenance | None) -> Policy:
        """With the seed and the sampling of a chunk of the node, as far as nobody gave them.

        Raises:
            UserError: the policy cannot be sampled so.
        """
        if made is None:
            return self
        told = {name: getattr(made, name) for name in SAMPLING if name not in self.given}
        sampling = replace(self.sampling, **told).checked(self.engine.policy.recipe.policy)
        seed = self.seed if "noise_seed" in self.given else made.noise_seed
        return replace(self, sampling=sampling, seed=seed)


def to_horizon(sampling: Sampling, predicted_steps: int) -> Sampling:
    """The same, but a chunk has all actions that are predicted, not only the executed ones."""
    return replace(sampling, n_action_steps=predicted_steps - (sampling.first_action or 0))
