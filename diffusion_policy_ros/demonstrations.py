"""Demonstrations without a robot: a simulator's expert, written into rosbag2 files.

The bags are what the recorder would have written of `sim_robot` led by the expert: the same
messages by the same stamps through the same writer, only faster than real time. One bag an
episode, named by its seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data import bags
from diffusion_policy_ros.data.workers import pool
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.sim.simulator import FIRST_EVALUATION_SEED
from diffusion_policy_ros.sim.stamped import IMAGE, TRAJECTORY, Stamped
from diffusion_policy_ros.simulated_robot import SimulatedRobot

START_NS = 1_000_000_000
"""Stamp of the first frame: a simulated clock, soon after its start."""

ARRIVALS = {IMAGE: (0.03, 0.02), TRAJECTORY: (0.12, 0.02)}
"""Type → how long after its stamp a message arrives, and how much later than that it may be, in
periods; of all others `ARRIVAL`.
"""
ARRIVAL = (0.008, 0.004)


HOPELESS = 50
"""Episodes of which the expert has to finish one."""


@dataclass
class Recorded:
    """What `record_demonstrations` did.

    Attributes:
        bags: one folder an episode, in order of seeds; each has a success.
        failed: seeds of episodes that the expert did not finish in time; not kept.
        skipped: how many of the bags were there already.
        frames: in all new bags.
    """

    bags: list[Path] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    skipped: int = 0
    frames: int = 0


Progress = Callable[[Recorded, int], None]
"""Called after every episode with what there is so far and how many are wanted."""


def record_demonstrations(
    contract: Contract,
    out: str | Path,
    count: int,
    first_seed: int = 0,
    *,
    sim: str = "mini_lift",
    jobs: int = 1,
    progress: Progress | None = None,
) -> Recorded:
    """Record episodes of the expert into bags; what is there already is kept.

    Seeds are taken in order from the first one, and as many more as episodes failed: the result is
    the same whatever the number of processes.

    Args:
        contract: the robot: what is recorded; its cameras are rendered if it has any.
        out: folder for the bags, ``seed_00000`` and so on.
        count: bags wanted.
        first_seed: of the episodes; all must be below 10000, where evaluation begins.
        sim: the simulator's name.
        jobs: processes.
        progress: called after each episode.

    Raises:
        UserError: the contract is not of the simulator, which may have no expert, or fail; the
            expert never succeeds, or so seldom that the seeds reach evaluation's; the folder holds
            bags of another contract; a process was killed. What was recorded before is whole.
    """
    out = Path(out)
    SimulatedRobot(contract, contract.has_images, True, sim).close()
    out.mkdir(parents=True, exist_ok=True)
    recorded, seed = Recorded(), first_seed
    with _Workers((contract.text, out, sim), jobs) as workers:
        while len(recorded.bags) < count:
            seeds = range(seed, seed + count - len(recorded.bags))
            seed = seeds.stop
            _check_seeds(first_seed, seed, recorded)
            for episode in workers.record(seeds):
                _note(recorded, episode)
                _check_hope(recorded, sim)
                if progress is not None:
                    progress(recorded, count)
    return recorded


@dataclass(frozen=True)
class _Episode:
    seed: int
    path: Path
    success: bool
    frames: int
    skipped: bool = False


def _note(recorded: Recorded, episode: _Episode) -> None:
    if not episode.success:
        recorded.failed.append(episode.seed)
        return
    recorded.bags.append(episode.path)
    recorded.skipped += episode.skipped
    recorded.frames += 0 if episode.skipped else episode.frames


def _check_seeds(first: int, end: int, recorded: Recorded) -> None:
    if first < 0 or end > FIRST_EVALUATION_SEED:
        failed = f", and the expert failed in {len(recorded.failed)}" if recorded.failed else ""
        raise UserError(
            f"seeds {first} to {end - 1} are not all training seeds{failed}",
            "demonstrations",
            f"stay within 0 to {FIRST_EVALUATION_SEED - 1}",
        )


def _check_hope(recorded: Recorded, sim: str) -> None:
    if len(recorded.failed) >= HOPELESS and not recorded.bags:
        what = f"its expert failed in all of {len(recorded.failed)} episodes"
        raise UserError(what, sim, "mend the expert, or allow it more steps")


class _Workers:
    """Records episodes in this process or in several, always in the seeds' order."""

    def __init__(self, how: tuple[str, Path, str], jobs: int) -> None:
        _, self._out, _ = how
        self._recorder: _Recorder | None = None
        self._pool: ProcessPoolExecutor | None = None
        if jobs <= 1:
            self._recorder = _Recorder(*how)
        else:
            self._pool = pool(jobs, _begin_worker, *how)

    def record(self, seeds: Iterable[int]) -> Iterator[_Episode]:
        """Each seed's episode, as it is done.

        Raises:
            UserError: a process was killed, as where memory ran out.
        """
        if self._recorder is not None:
            yield from map(self._recorder.record, seeds)
            return
        assert self._pool is not None
        try:
            yield from self._pool.map(_record_in_worker, seeds)
        except BrokenExecutor:
            cure = "check the memory, and run it again: what was recorded is kept"
            raise UserError("a process ended before its work", str(self._out), cure) from None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._recorder is not None:
            self._recorder.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_worker: _Recorder | None = None


def _begin_worker(contract_text: str, out: Path, sim: str) -> None:
    global _worker
    _worker = _Recorder(contract_text, out, sim)


def _record_in_worker(seed: int) -> _Episode:
    assert _worker is not None
    return _worker.record(seed)


class _Recorder:
    """Records one episode after the other."""

    def __init__(self, contract_text: str, out: Path, sim: str) -> None:
        self._contract, self._out = Contract.from_text(contract_text), out
        self._robot = SimulatedRobot(self._contract, self._contract.has_images, True, sim)

    def close(self) -> None:
        self._robot.close()

    def record(self, seed: int) -> _Episode:
        """One episode's bag, or nothing where the expert failed or the bag is there."""
        path = self._out / f"seed_{seed:05d}"
        if self._is_there(path):
            return _Episode(seed, path, True, 0, skipped=True)
        metadata = {"contract": self._contract.text, "seed": str(seed), "success": "true"}
        writer = bags.BagWriter(path, self._contract.recorded_topics, metadata)
        try:
            success, frames = self._write_episode(writer, seed)
        except BaseException:
            writer.discard()
            raise
        if success:
            writer.close()
        else:
            writer.discard()
        return _Episode(seed, path, success, frames)

    def _is_there(self, path: Path) -> bool:
        """Whether the episode is there, whole and of the same contract; half a one is removed."""
        if not path.exists():
            return False
        if not (path / "metadata.yaml").is_file():
            shutil.rmtree(path)
            return False
        theirs = Contract.from_text(bags.open_bag(path).metadata.get("contract", ""), str(path))
        if theirs.hash != self._contract.hash:
            what = f"was recorded with another contract ({self._contract.difference(theirs)})"
            raise UserError(what, str(path), "use another folder")
        return True

    def _write_episode(self, writer: bags.BagWriter, seed: int) -> tuple[bool, int]:
        """Play the episode into a bag; whether it succeeded, and its frames."""
        robot, time_ns, frames = self._robot, START_NS, 0
        delays = np.random.default_rng([seed, 2])
        robot.reset(seed, time_ns)
        while True:
            frame = robot.messages(time_ns, bags.message_types)
            step = robot.advance(time_ns)
            assert step.command is not None, "the expert leads until the result"
            frame.append(robot.command_message(step.command, time_ns, bags.message_types))
            late = [self._contract.period_ns * _lateness(m.type_name, delays) for m in frame]
            self._write(writer, frame, [time_ns + round(by) for by in late])
            frames, time_ns = frames + 1, time_ns + self._contract.period_ns
            if step.result is not None:
                return step.result.success, frames

    def _write(self, writer: bags.BagWriter, frame: list[Stamped], arrivals_ns: list[int]) -> None:
        """Write a frame's messages in the order in which they would have arrived."""
        for i in np.argsort(arrivals_ns, kind="stable"):
            topic, type_name, message = frame[i]
            if topic in self._contract.recorded_topics:
                writer.write(topic, arrivals_ns[i], bags.serialize(type_name, message))


def _lateness(type_name: str, delays: np.random.Generator) -> float:
    """How late a message arrives, in periods."""
    least, spread = ARRIVALS.get(type_name, ARRIVAL)
    return least + spread * delays.uniform()
