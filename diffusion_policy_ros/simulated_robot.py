"""A simulator as a robot: plays chunks in time, or is led by its expert, one episode after the
other.

No ROS: `ros/sim_robot.py` gives it a clock and topics, `demonstrations.py` writes what it does
into bags.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError, first_line
from diffusion_policy_ros.observe.codecs import decode
from diffusion_policy_ros.runtime.axes import goals
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.sim.simulator import Expert, SetPoint, Vector, make_simulator
from diffusion_policy_ros.sim.stamped import (
    Arrays,
    Stamped,
    Stamper,
    Types,
    duck_typed,
    numpy_array,
)

SHOWN_AFTER_SUCCESS = 3
"""Steps that the expert goes on after success, so that the last windows hold its actions, not a
standstill.
"""
MOVED = 1e-4
"""A set-point that lies so far from where the robot was reset to begins the episode; m or rad."""
STREAM_HZ = 100
"""Set-points a second, about, as of the action player."""


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
class Step:
    """What happened in one control period.

    Attributes:
        set_point: field → what the robot was told.
        holding: why it holds; empty while it moves.
        command: the expert's clean action, to be recorded; None when it does not lead.
        result: of the episode, in the step that ended it.
    """

    set_point: SetPoint
    holding: str
    command: Vector | None
    result: EpisodeResult | None


class SimulatedRobot:
    """A simulator that a policy's chunks or the expert drive.

    An episode's steps count from its first action: until then the robot waits where it was reset
    to.

    Args:
        contract: the robot; its observations and actions must be ones that the simulator has.
        cameras: whether to render them.
        expert: whether the expert leads.
        sim: the simulator's name.

    Attributes:
        simulator: what is simulated.
        obs: the newest observation.
        player: of the episode, with its counts.

    Raises:
        UserError: the contract is not of this robot, the task has no expert, or the cameras cannot
            be rendered.
    """

    def __init__(
        self,
        contract: Contract,
        cameras: bool = True,
        expert: bool = False,
        sim: str = "mini_lift",
    ) -> None:
        self.contract = contract
        self.simulator = make_simulator(sim, contract, cameras)
        self._led, self._parts = expert, max(1, round(STREAM_HZ / contract.rate_hz))
        self._seed: int | None = None
        self._result: EpisodeResult | None = None
        self._expert: Expert | None = None
        if expert:
            self._find_expert(0)

    def reset(self, seed: int, time_ns: int) -> EpisodeResult | None:
        """Begin the episode of a seed.

        Args:
            seed: of the episode, and of the expert's.
            time_ns: when it begins; chunks from before are not played.

        Returns:
            The result of the episode that this cut short, if any.

        Raises:
            UserError: the simulator cannot take the seed, or it fails.
        """
        cut_short = None if self.waiting or self._result else self._over("reset")
        with self._told_of_failure(seed):
            self.obs = self.simulator.reset(seed)
            self._measured = self._measure()
        rate_hz = self._parts * self.contract.rate_hz
        self.player, self._ticked_ns = Player(self.contract, rate_hz), time_ns
        self.player.release(time_ns)
        self._expert = self._find_expert(seed) if self._led else None
        self._seed, self._start_ns = seed, time_ns
        self._result, self._holds, self._done_steps = None, 0, 0
        self._chunk: Chunk | None = None
        self._followed: SetPoint | None = None
        return cut_short

    @property
    def seed(self) -> int | None:
        """The episode's seed; None before the first."""
        return self._seed

    @property
    def waiting(self) -> bool:
        """Whether the episode's first action is still to come."""
        return self._seed is None or self.simulator.steps == 0

    def offer(self, chunk: Chunk) -> str:
        """Take a policy's chunk.

        Returns:
            Why it is not played; empty when it is.
        """
        if self._seed is None:
            return "before the first episode"
        if len(chunk.actions) and chunk.stamp_ns < self._start_ns:
            return "from before the reset"
        reason = self.player.offer(chunk)
        self._chunk = self._chunk if reason else chunk
        return reason

    def follow(self, told: SetPoint) -> None:
        """Be told this from now on, in place of chunks, by whoever plays those."""
        self._followed = told

    def advance(self, time_ns: int) -> Step:
        """Execute what is due now for one control period, and observe.

        Args:
            time_ns: now, by the clock that chunks are stamped by.

        Raises:
            UserError: the simulator fails.
        """
        command = self._due(time_ns)
        told, holding = self._told
        if self.waiting and holding:
            return Step(told, holding, None, None)
        with self._told_of_failure(self._seed):
            before, self.obs = self._measured, self.simulator.step(told)
            self._measured = self._measure()
        self._stream(time_ns, before)
        self._holds += bool(holding)
        return Step(told, holding, command, self._check_over())

    def give_up(self) -> EpisodeResult:
        """End the episode as it is."""
        self._result = self._over("reset")
        return self._result

    def messages(self, stamp_ns: int, types: Types, arrays: Arrays = numpy_array) -> list[Stamped]:
        """The newest observation as the robot publishes it, cameras first; see `sim.stamped`."""
        return self.simulator.messages(self.obs, stamp_ns, types, arrays)

    def command_message(
        self, action: Vector, stamp_ns: int, types: Types, arrays: Arrays = numpy_array
    ) -> Stamped:
        """An action of the expert's as it is recorded: in the units that the contract's ``scale``
        undoes.
        """
        stream, simulator = self.contract.action.commands[0], self.simulator
        values = np.asarray(action, float) / np.array(stream.scale or 1.0)
        names, make = stream.names or self.contract.action_names, Stamper(stamp_ns, types, arrays)
        return make.command(simulator.command_topic, simulator.base_frame, names, values)

    def planned(self, time_ns: int) -> list[SetPoint]:
        """Where the actions that are still to come lead, from the present one on."""
        goal, chunk = self.player.goal, self._chunk
        if chunk is None or not goal:
            return []
        jitter_ns = self.contract.period_ns // 4  # of stamps: what is due so soon counts as done
        to_come = chunk.actions[max(chunk.index(time_ns + jitter_ns) + 1, 0) :]
        return [*goals(self.contract, goal, to_come)]

    def leads(self, actions: Vector) -> list[SetPoint]:
        """Where actions (n, Da) lead from where the robot is, one more than there are actions."""
        fields = self.contract.commanded
        here = {p.name: self._measured[p.state] for p in fields if p.state in self._measured}
        return [*goals(self.contract, here, actions)]

    def close(self) -> None:
        """Free what rendering took."""
        self.simulator.close()

    def __enter__(self) -> SimulatedRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find_expert(self, seed: int) -> Expert:
        """The expert of an episode, whose actions the contract has to record."""
        expert, name = self.simulator.expert(seed), self.simulator.name
        if expert is None:
            cure = "record another robot's demonstrations, see `diffusion-policy record`"
            raise UserError(f"{name} has no expert", "simulator", cure)
        commands = self.contract.action.commands
        if [stream.topic for stream in commands] != [self.simulator.command_topic]:
            cure = f"record: {{topic: {self.simulator.command_topic}, ...}}"
            raise UserError(f"the expert of {name} is not recorded", self.contract.name, cure)
        return expert

    @contextmanager
    def _told_of_failure(self, seed: int | None) -> Iterator[None]:
        """Whatever a simulator raises becomes one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            name, step = self.simulator.name, self.simulator.steps
            what = f"it raised {type(error).__name__} at step {step} of seed {seed}"
            cure = "mend the simulator, or begin at another seed"
            raise UserError(f"{what}: {first_line(error)}", name, cure) from error

    def _measure(self) -> dict[str, Vector]:
        """What a player has to be shown, read from the messages as a player reads it."""
        made = self.simulator.messages(self.obs, 0, duck_typed, numpy_array)
        heard = {message.topic: message.message for message in made}
        streams = self.contract.measured.items()
        return {key: decode(s, heard[s.topic]) for key, s in streams if s.topic in heard}

    @property
    def _told(self) -> tuple[SetPoint, str]:
        """What the robot is told, and why it holds."""
        if self._followed is None:
            return self.player.set_point or {}, self.player.why
        led_away = not self.waiting or self._leads_away(self._followed)
        return self._followed, "" if led_away else "waiting for a set-point elsewhere"

    def _leads_away(self, told: SetPoint) -> bool:
        """Whether it is told to be elsewhere; a turn alone begins no episode."""
        fields = self.contract.action.of_role("position", "joints")
        here = {part.name: self._measured.get(part.state) for part in fields if part.name in told}
        ways = [told[name] - place for name, place in here.items() if place is not None]
        return not ways or any(np.linalg.norm(way) >= MOVED for way in ways)

    def _due(self, time_ns: int) -> Vector | None:
        """Bring the player to now; the action to record where the expert leads."""
        if self._followed is not None:
            return None
        if self._expert is None:
            self._tick(time_ns, self._measured)
            return None
        if self._result is not None:
            return None
        with self._told_of_failure(self._seed):
            clean, executed = self._expert.act(self.obs, self.player.set_point or {})
        self._ticked_ns = max(time_ns, self._ticked_ns)
        self.player.offer(Chunk(self._ticked_ns, executed[None], self.contract.period_ns))
        self._tick(time_ns, self._measured)
        return clean

    def _tick(self, time_ns: int, measured: dict[str, Vector]) -> None:
        self._ticked_ns = max(time_ns, self._ticked_ns)  # stamps jitter, time does not go back
        self.player.tick(self._ticked_ns, measured)
        if self.player.state == "fault":  # nobody is hurt here
            self.player.release(self._ticked_ns)

    def _stream(self, time_ns: int, measured: dict[str, Vector]) -> None:
        """The player's ticks until the robot, whose controller is slower, is told anew."""
        if self._followed is None and self._expert is None:
            for part in range(1, self._parts):
                self._tick(time_ns + part * self.contract.period_ns // self._parts, measured)

    def _check_over(self) -> EpisodeResult | None:
        """The result, once: at success (a little later where the expert leads) or after the last
        step.
        """
        if self._result is not None or not self.simulator.done:
            return None
        steps, success = self.simulator.steps, self.simulator.success
        self._done_steps = self._done_steps or steps
        shown = SHOWN_AFTER_SUCCESS if self._expert is not None and success else 0
        if steps - self._done_steps >= shown:
            self._result = self._over("success" if success else "steps")
        return self._result

    def _over(self, ended: str) -> EpisodeResult:
        assert self._seed is not None
        steps = self._done_steps or self.simulator.steps
        return EpisodeResult(
            seed=self._seed,
            success=self.simulator.success,
            ended=ended,
            steps=steps,
            seconds=steps * self.contract.period_ns / 1e9,
            holds=self._holds,
            clamped={name: n for name, n in self.player.clamped.items() if n},
            rejected=dict(self.player.rejected),
            dropped=self.player.dropped,
        )
