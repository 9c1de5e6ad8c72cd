"""The simulated arm as a robot: plays chunks in time, or is led by the expert, one episode after
the other.

No ROS: `ros/sim_robot.py` gives it a clock and topics, `demonstrations.py` writes what it does
into bags.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.runtime.axes import goals
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.sim.arm import PERIOD_NS, RATE_HZ, SimArm
from diffusion_policy_ros.sim.expert import OPEN, Expert
from diffusion_policy_ros.sim.messages import COMMAND_TOPIC, TOPICS, TRAJECTORY

Vector = NDArray[np.float64]
Observation = dict[str, np.ndarray]

STATES = ("robot0_eef_pos", "robot0_eef_quat")
EXPERT_KINDS = ("delta_position", "delta_axis_angle", "binary")
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
SHOWN_AFTER_SUCCESS = 3
"""Steps that the expert goes on after success, so that the last windows hold its actions, not a
standstill.
"""
MOVED_M = 1e-4
"""A set-point that lies so far from where the arm was reset to begins the episode."""
STREAM_HZ = 100
"""Set-points a second, as of the action player."""
JITTER_NS = PERIOD_NS // 4
"""Of stamps: what is due so soon counts as done."""


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended.

    Attributes:
        seed: the episode's seed.
        success: whether the task was done in time.
        ended: `success`, `steps` (the task's last step passed) or `reset` (cut short).
        steps: control periods from the first action until then.
        seconds: the same as time on the robot's clock.
        holds: steps of these in which the arm held, because no action was due.
        clamped: limit → actions that it clamped.
        rejected: reason → chunks that were rejected for it.
        dropped: actions never executed because their time had passed.
    """

    seed: int
    success: bool
    ended: str
    steps: int
    seconds: float
    holds: int
    clamped: dict[str, int]
    rejected: dict[str, int]
    dropped: int

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class ArmCommand:
    """What the arm's controller is told in one control period.

    Attributes:
        position: of the gripper, m.
        quaternion: its orientation, x y z w; None for upright.
        gripper: -1 open to +1 closed; None for open.
        holding: why the arm holds; empty while it moves.
    """

    position: Vector
    quaternion: Vector | None = None
    gripper: float | None = None
    holding: str = ""


@dataclass(frozen=True)
class Step:
    """What happened in one control period.

    Attributes:
        set_point: what the arm was told.
        command: the expert's clean action, to be recorded; None when it does not lead.
        result: of the episode, in the step that ended it.
    """

    set_point: ArmCommand
    command: Vector | None
    result: EpisodeResult | None


class SimulatedRobot:
    """An arm that a policy's chunks or the expert drive.

    An episode's steps count from its first action: until then the arm waits where it was reset to.

    Args:
        contract: the robot; its observations and actions must be ones that the simulator has.
        cameras: whether to render them.
        expert: whether the expert leads.

    Attributes:
        arm: the simulator.
        obs: the newest observation.
        player: of the episode, with its counts.

    Raises:
        UserError: the contract is not of this robot, or the cameras cannot be rendered.
    """

    def __init__(self, contract: Contract, cameras: bool = True, expert: bool = False) -> None:
        check_contract(contract, cameras, expert)
        self.contract = contract
        self.arm = SimArm(render=cameras)
        self._led = expert
        self._seed: int | None = None
        self._result: EpisodeResult | None = None

    def reset(self, seed: int, time_ns: int) -> EpisodeResult | None:
        """Begin the episode of a seed.

        Args:
            seed: of the episode, and of the expert's.
            time_ns: when it begins; chunks from before are not played.

        Returns:
            The result of the episode that this cut short, if any.
        """
        cut_short = None if self.waiting or self._result else self._over("reset")
        self.obs = self.arm.reset(seed)
        self.player, self._ticked_ns = Player(self.contract, STREAM_HZ), time_ns
        self.player.release(time_ns)
        self._expert = Expert(seed) if self._led else None
        self._seed, self._start_ns = seed, time_ns
        self._result, self._holds, self._done_steps = None, 0, 0
        self._chunk: Chunk | None = None
        self._followed: ArmCommand | None = None
        return cut_short

    @property
    def seed(self) -> int | None:
        """The episode's seed; None before the first."""
        return self._seed

    @property
    def waiting(self) -> bool:
        """Whether the episode's first action is still to come."""
        return self._seed is None or self.arm.steps == 0

    def offer(self, chunk: Chunk) -> str:
        """Take a policy's chunk.

        Returns:
            Why it is not played; empty when it is.
        """
        if len(chunk.actions) and chunk.stamp_ns < self._start_ns:
            return "from before the reset"
        reason = self.player.offer(chunk)
        self._chunk = self._chunk if reason else chunk
        return reason

    def follow(self, command: ArmCommand) -> None:
        """Be told this from now on, in place of chunks, by whoever plays those."""
        self._followed = command

    def advance(self, time_ns: int) -> Step:
        """Execute what is due now for one control period, and observe.

        Args:
            time_ns: now, by the clock that chunks are stamped by.
        """
        set_point, command = self._due(time_ns)
        if self.waiting and set_point.holding:
            return Step(set_point, None, None)
        gripper = OPEN if set_point.gripper is None else set_point.gripper
        upright = UPRIGHT if set_point.quaternion is None else set_point.quaternion
        before, self.obs = self.obs, self.arm.step(set_point.position, upright, gripper)
        self._stream(time_ns, before)
        self._holds += bool(set_point.holding)
        return Step(set_point, command, self._check_over())

    def give_up(self) -> EpisodeResult:
        """End the episode as it is."""
        self._result = self._over("reset")
        return self._result

    def planned(self, time_ns: int) -> Vector:
        """Where the actions that are still to come lead: (n, 3) commanded positions, m, from the
        present one on.
        """
        goal, chunk = self.player.goal, self._chunk
        if chunk is None or not goal:
            return np.empty((0, 3))
        to_come = chunk.actions[max(chunk.index(time_ns + JITTER_NS) + 1, 0) :]
        name = self.contract.action.of_role("position")[0].name
        return np.array([there[name] for there in goals(self.contract, goal, to_come)])

    def close(self) -> None:
        """Free what rendering took."""
        self.arm.close()

    def __enter__(self) -> SimulatedRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _due(self, time_ns: int) -> tuple[ArmCommand, Vector | None]:
        """The set-point, and the action to record where the expert leads."""
        if self._followed is not None:
            return self._begun_by(self._followed), None
        if self._expert is None:
            return self._tick(time_ns, self.obs), None
        before = self._command()
        if self._result is not None:
            return before, None
        assert before.quaternion is not None, "the expert's contract has one"
        clean, executed = self._expert.act(self.obs, before.position, before.quaternion)
        self._ticked_ns = max(time_ns, self._ticked_ns)
        self.player.offer(Chunk(self._ticked_ns, executed[None], PERIOD_NS))
        return self._tick(time_ns, self.obs), clean

    def _tick(self, time_ns: int, measured: Observation) -> ArmCommand:
        self._ticked_ns = max(time_ns, self._ticked_ns)  # stamps jitter, time does not go back
        self.player.tick(self._ticked_ns, measured)
        if self.player.state == "fault":  # nobody is hurt here
            self.player.release(self._ticked_ns)
        return self._command()

    def _command(self) -> ArmCommand:
        """What the player says, or else to stay."""
        told, action = self.player.set_point or {}, self.contract.action
        position: Vector = self.obs[STATES[0]]
        quaternion = self.obs[STATES[1]] if action.of_role("rotation") else None
        gripper = None
        for part in action.fields:
            if part.name in told:
                position = told[part.name] if part.role == "position" else position
                quaternion = told[part.name] if part.role == "rotation" else quaternion
                gripper = float(told[part.name][0]) if part.role == "binary" else gripper
        return ArmCommand(position, quaternion, gripper, self.player.why)

    def _stream(self, time_ns: int, measured: Observation) -> None:
        """The player's ticks until the arm, whose controller is slower, is told anew."""
        if self._followed is None and self._expert is None:
            parts = STREAM_HZ // RATE_HZ
            for part in range(1, parts):
                self._tick(time_ns + part * PERIOD_NS // parts, measured)

    def _begun_by(self, told: ArmCommand) -> ArmCommand:
        """The same; one that does not yet lead anywhere is a hold until the episode has begun."""
        way = told.position - self.obs["robot0_eef_pos"]
        if self.waiting and np.linalg.norm(way) < MOVED_M:
            return replace(told, holding="waiting for a set-point elsewhere")
        return told

    def _check_over(self) -> EpisodeResult | None:
        """The result, once: at success (a little later where the expert leads) or after the last
        step.
        """
        if self._result is not None or not self.arm.done:
            return None
        self._done_steps = self._done_steps or self.arm.steps
        shown = SHOWN_AFTER_SUCCESS if self._expert is not None and self.arm.success else 0
        if self.arm.steps - self._done_steps >= shown:
            self._result = self._over("success" if self.arm.success else "steps")
        return self._result

    def _over(self, ended: str) -> EpisodeResult:
        assert self._seed is not None
        steps = self._done_steps or self.arm.steps
        return EpisodeResult(
            seed=self._seed,
            success=self.arm.success,
            ended=ended,
            steps=steps,
            seconds=steps * PERIOD_NS / 1e9,
            holds=self._holds,
            clamped={name: n for name, n in self.player.clamped.items() if n},
            rejected=dict(self.player.rejected),
            dropped=self.player.dropped,
        )


def check_contract(contract: Contract, cameras: bool = True, expert: bool = False) -> None:
    """Refuse a contract that is not of the simulated arm.

    Raises:
        UserError: it has a topic that the simulator lacks, or actions that it cannot execute.
    """
    offered = dict(TOPICS) | {COMMAND_TOPIC: TRAJECTORY}
    cure = "use mini_lift, mini_lift_state or a contract with their topics and actions"
    for topic, type_name in contract.recorded_topics.items():
        if offered.get(topic) != type_name:
            what = f"the simulated arm has no {type_name} on {topic}"
            raise UserError(what, contract.name, cure)
    if not cameras and any(stream.is_image for stream in contract.observations.values()):
        raise UserError("the contract has images", contract.name, "let the arm render its cameras")
    kinds = tuple(part.kind for part in contract.action.fields)
    if expert and kinds != EXPERT_KINDS:
        raise UserError(f"the expert does not give {', '.join(kinds)}", contract.name, cure)
    if not any(kind in ("delta_position", "position") for kind in kinds):
        raise UserError("the simulated arm is told positions, not joints", contract.name, cure)
    if any(part.state not in STATES for part in contract.action.fields if part.kind != "binary"):
        raise UserError("a field of the action names no state", contract.name, f"name {STATES}")
