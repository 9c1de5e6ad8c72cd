"""What a simulator is to the rest of the package, and which ones there are; no torch, no ROS.

Whatever has the attributes of `Simulator` can be evaluated, demonstrated in, driven over DDS and
drawn: a class of the user's own, too (doc/how-to/your-own-simulator.md). What varies between
simulators is asked of them: rate, topics, pictures, the end of an episode.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.sim.stamped import TRAJECTORY, Arrays, Stamped, Types

Vector = NDArray[np.float64]
Observation = Mapping[str, np.ndarray]
SetPoint = Mapping[str, Vector]
"""Field of the action → what it is told, as the axes have it: a position (3,), a quaternion (4,)
for every kind of rotation, joints (n,), a scalar (1,), a binary (1,) that is +1 for closed."""

FIRST_EVALUATION_SEED, FIRST_REPORTED_SEED = 10_000, 20_000
"""Episodes of smaller seeds than the first are for training, from there on for evaluation: below
the second to choose by, from it on to report, and nothing is chosen by those.
"""
ENTRY_POINTS = "diffusion_policy_ros.simulators"


class Expert(Protocol):
    """A demonstrator of one episode."""

    def act(self, observation: Observation, told: SetPoint) -> tuple[Vector, Vector]:
        """The next action.

        Args:
            observation: of the simulator.
            told: what the robot is told now; empty before the first action.

        Returns:
            `(clean, executed)`, each (Da,) in the contract's kinds and SI units: the first is
            recorded, the second done.
        """


class Simulator(Protocol):
    """A simulated robot with a task; an episode follows from its seed alone.

    It is made as `make(contract, cameras)`, with the contract that it is a robot of, and with
    pictures in its observations or without. It raises `UserError` for what it cannot be, before
    it builds what takes long.

    Attributes:
        name: for messages.
        rate_hz: control periods a second, which a contract's rate has to be.
        topics: every topic that `messages` publishes → its type.
        command_topic: where the expert's actions are published.
        base_frame: tf frame that the expert's actions are in.
        cameras: names of its pictures for people, the best one first; none where it has none.
        max_steps: control periods of the longest episode.
        done: whether the episode is over, by success or by its last step.
        success: whether the task was done in time.
        steps: control periods since reset.
    """

    name: str
    rate_hz: float
    topics: Mapping[str, str]
    command_topic: str
    base_frame: str
    cameras: Sequence[str]
    max_steps: int

    @property
    def done(self) -> bool: ...  # noqa: D102
    @property
    def success(self) -> bool: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102

    def reset(self, seed: int) -> Observation:
        """Begin the episode of a seed; `UserError` for one that it cannot take."""

    def step(self, told: SetPoint) -> Observation:
        """Follow a set-point for one control period; stay where it is if that is empty."""

    def messages(
        self, observation: Observation, stamp_ns: int, types: Types, arrays: Arrays
    ) -> list[Stamped]:
        """An observation as the robot publishes it, cameras first; see `sim.stamped`."""

    def expert(self, seed: int) -> Expert | None:
        """A demonstrator of the episode; None where the task has none, `UserError` where the
        contract's actions are not what it gives.
        """

    def render(self, camera: str, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB: a picture of this instant, for people."""

    def project(
        self, told: Sequence[SetPoint], camera: str, height: int, width: int
    ) -> NDArray[np.float64]:
        """(n, 2) column and row of set-points in that picture; (0, 2) where they have no place."""

    def close(self) -> None:
        """Free what it took."""


@runtime_checkable
class SeveralWays(Protocol):
    """What a simulator has beside, whose task can be done in clearly different ways.

    Attributes:
        ways: their names.
        way: the one that the episode took; empty until it is clear.
        collisions: how often it ran into something.
    """

    ways: Sequence[str]

    @property
    def way(self) -> str: ...  # noqa: D102
    @property
    def collisions(self) -> int: ...  # noqa: D102

    def way_of(self, told: Sequence[SetPoint]) -> str:
        """The way that set-points lead; empty where that is not clear."""


Make = Callable[[Contract, bool], Simulator]


@dataclass(frozen=True)
class Entry:
    """A simulator that is shipped.

    Attributes:
        place: of what makes it, as ``module:name``.
        install: the command that installs what it needs.
        contract: the shipped one, with cameras; empty where it has none.
        state: the shipped one without cameras.
    """

    place: str
    install: str
    contract: str
    state: str


PIP = "pip install 'diffusion_policy_ros[sim]'"
SIMULATORS: dict[str, Entry] = {
    "mini_lift": Entry("diffusion_policy_ros.sim.lift:Lift", PIP, "mini_lift", "mini_lift_state"),
    "mini_bypass": Entry("diffusion_policy_ros.sim.bypass:Bypass", PIP, "", "mini_bypass"),
    **{
        f"robosuite/{task.lower()}": Entry(
            f"diffusion_policy_ros.sim.robosuite:{task}",
            "make robosuite",
            "robosuite",
            "robosuite_state",
        )
        for task in ("Lift", "Can", "Square")
    },
    "pusht": Entry("diffusion_policy_ros.sim.pusht:PushT", "make pusht", "", "pusht_state"),
}
"""Name → what is shipped; users' own are entry points of the group `ENTRY_POINTS`."""


def make_simulator(name: str, contract: Contract, cameras: bool = True) -> Simulator:
    """The simulator of a name, as the robot of a contract.

    Args:
        name: one of `SIMULATORS`, or an entry point.
        contract: the robot.
        cameras: whether its observations have pictures.

    Raises:
        UserError: there is none, it is not installed, or it is not the contract's robot.
    """
    simulator = found(name)(contract, cameras)
    try:
        check_contract(simulator, contract, cameras)
    except UserError:
        simulator.close()
        raise
    return simulator


def found(name: str) -> Make:
    """What makes the simulator of a name, imported now and not before.

    Raises:
        UserError: there is none, or what it needs is not installed.
    """
    own = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in SIMULATORS and name not in own:
        cure = did_you_mean(name, [*SIMULATORS, *own])
        raise UserError(f"no simulator '{name}'", "simulator", cure)
    try:
        if name not in SIMULATORS:
            make: Make = own[name].load()
            return make
        module, _, attribute = SIMULATORS[name].place.partition(":")
        make = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything
        is_ours = name in SIMULATORS
        cure = SIMULATORS[name].install if is_ours else "mend the package that has it"
        what = f"{name} cannot be imported: {first_line(error)}"
        raise UserError(what, "simulator", cure) from error
    return make


def check_contract(simulator: Simulator, contract: Contract, cameras: bool = True) -> None:
    """Refuse a contract that is not of this simulator.

    Raises:
        UserError: it has another rate, a topic that the simulator lacks, or images where there
            are none.
    """
    offered = {**simulator.topics, simulator.command_topic: TRAJECTORY}
    cure = takes(simulator.name)
    for topic, type_name in contract.recorded_topics.items():
        if offered.get(topic) != type_name:
            what = f"{simulator.name} has no {type_name} on {topic}"
            raise UserError(what, contract.name, cure)
    if contract.rate_hz != simulator.rate_hz:
        what = f"{contract.rate_hz:g} Hz, but {simulator.name} runs at {simulator.rate_hz:g}"
        raise UserError(what, contract.name, cure)
    if not cameras and contract.has_images:
        raise UserError("the contract has images", contract.name, "let cameras be rendered")


def takes(name: str) -> str:
    """The cure for a contract of another robot than the simulator of this name."""
    entry = SIMULATORS.get(name)
    shipped = (entry.contract, entry.state) if entry else ("its own contract",)
    return f"use {' or '.join(filter(None, shipped))}, or one with its topics, actions and rate"


def default_contract(name: str, cameras: bool) -> str:
    """The shipped contract of a simulator.

    Raises:
        UserError: there is none, nor such a simulator.
    """
    entry = SIMULATORS.get(name)
    if entry is None:
        found(name)
        raise UserError(f"no contract of {name} is shipped", "simulator", "give its contract")
    shipped = entry.contract if cameras else entry.state
    if not shipped:
        raise UserError(f"{name} has no cameras", "simulator", "leave cameras out, or --state")
    return shipped
