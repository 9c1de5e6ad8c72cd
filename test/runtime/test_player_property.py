"""The player with an adversarial arm and operator, over all kinds of fields at once."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from robots import MS, PERIOD, ROBOTS, TICK, home, moved, way, within

from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.tail import Chunk

OPERATOR = (
    "stop",
    "let go",
    "release",
    "hand over",
    "hold",
    "go on",
    "fault",
    "respawn",
    "slow",
    "fast",
)
ARM = (*["follow"] * 8, *["lag"] * 3, "sag", "push", "glitch", "blind", "nan", "back")
CLOCK = (*["even"] * 8, "late", "stall", "jitter", "jitter", "still", "back", "forward")
TICKS_NS = {
    "late": 60 * MS,
    "stall": 400 * MS,
    "still": 0,
    "back": -300 * MS,
    "forward": 5_000 * MS,
}

chunks = st.tuples(
    st.just("chunk"),
    st.integers(-3, 1),
    st.integers(0, 2**16),
    st.sampled_from([0.003, 0.02, 0.3]),
)
again = st.just("release")
happenings = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.one_of(chunks, chunks, chunks, again, st.sampled_from(OPERATOR)),
        st.sampled_from(ARM),
        st.sampled_from(CLOCK),
    ),
    min_size=3,
    max_size=12,
)


@dataclass
class Flight:
    """A player, its arm, and what has to be true of them after each tick."""

    contract: object
    now: int = 1_000 * MS
    released: bool = False
    offered: bool = False
    running: bool = False
    told: dict = field(default_factory=dict)
    speeds: dict = field(default_factory=dict)
    rest: bool = True
    outside: dict = field(default_factory=dict)

    def __post_init__(self):
        self.player = Player(self.contract, 100)
        self.where = home(self.contract)
        self.parts = {part.name: part for part in self.contract.commanded}
        self.limits = {
            part.name: self.contract.action.limits_of(part) for part in self.contract.commanded
        }

    def happen(self, what):
        """An operator's word, or a chunk."""
        player = self.player
        if isinstance(what, tuple):
            _, late, *random = what
            chunk = Chunk(self.now + late * PERIOD, self._actions(*random), PERIOD)
            self.offered = not player.offer(chunk, self.now) or self.offered
        elif what == "release":
            if not player.release(self.now):
                self.released, self.offered, self.running = True, False, False
        elif what == "respawn":
            self.player, self.released, self.running = Player(self.contract, 100), False, False
            self.told, self.rest = {}, True
        elif what in ("slow", "fast"):
            player.speed_scale = 0.1 if what == "slow" else 1.0
        else:
            {
                "stop": lambda: player.stop("told to"),
                "let go": lambda: player.stop("told to", keep=False),
                "hand over": player.hand_over,
                "hold": lambda: player.hold("the enabling switch is open"),
                "go on": lambda: player.hold(""),
                "fault": lambda: player.fault("frame", "another frame"),
            }[what]()

    def _actions(self, seed, scale):
        """A walk from where the arm is; deltas are its steps."""
        steps = np.random.default_rng(seed).normal(size=(8, self.contract.action_dim)) * scale
        for name, place in self.contract.action.slices.items():
            part = self.parts[name]
            if part.is_delta or part.role in ("binary", "twist", "joint_velocity"):
                steps[:, place] *= 1 if part.is_delta else 1 / scale
                continue
            steps[:, place] = np.cumsum(steps[:, place], axis=0)
            if part.kind == "rotation_6d":
                steps[:, place] += [1, 0, 0, 0, 1, 0]
            elif part.role != "rotation":
                steps[:, place] += self.where.get(part.state, 0.0)
        return steps

    def react(self, arm, rng):
        """What the arm does with what it was told, and what is measured of it."""
        for key, value in self.where.items():
            part = next(part for part in self.contract.commanded if part.state == key)
            goal = self.told.get(part.name, value)
            step = way(part, value, goal)
            if part.wrap:  # a driver takes the short way there
                step = (step + np.pi) % (2 * np.pi) - np.pi
            share = {"follow": 0.5, "lag": 0.05}.get(arm, 0.0)
            push = rng.normal(size=len(step)) * (0.02 if arm == "push" else 0.0)
            sag = np.full(len(step), -0.01 if arm == "sag" else 0.0)
            self.where[key] = moved(part, value, share * step + push + sag)
        seen = dict(self.where)
        if arm in ("glitch", "nan"):
            key = list(seen)[int(rng.integers(len(seen)))]
            seen[key] = seen[key] + (np.nan if arm == "nan" else rng.normal(size=len(seen[key])))
        return seen

    def tick(self, arm, clock, rng):
        """One tick, and what must be true after it."""
        gap = TICKS_NS.get(
            clock, TICK + (int(rng.integers(-4, 9)) * MS if clock == "jitter" else 0)
        )
        self.now += gap
        seen = self.react(arm, rng)
        age = 10_000 * MS if arm == "blind" else 0
        back = -5_000 * MS if arm == "back" else 0
        told = self.player.tick(self.now, seen, dict.fromkeys(seen, self.now - age + back))
        self.check(told, gap, seen)
        self.rest = self.player.at_rest

    def check(self, told, gap, seen):
        """All of what the robot may rely on."""
        state = self.player.state
        assert state in ("stopped", "playing", "holding", "operator", "fault")
        assert bool(self.player.why) is (state != "playing")
        if not self.released or (told is not None and not self.told):
            assert told is None or (self.released and self.offered), "nothing before both"
        if told is None:
            self.told, self.running = {}, False
            return
        for value in told.values():
            assert np.isfinite(value).all()
        begins = not self.running and self.player._begun
        if begins:
            self.running, gap = True, min(gap, TICK)
            self.told = {
                name: seen[part.state]
                for name, part in self.parts.items()
                if part.state in seen and name in told and part.role != "binary"
            }
            self.speeds = {}
            self.outside = {n: self._outside(n, v) for n, v in self.told.items()}
        for name, value in told.items():
            self._check_axis(name, value, gap, state, begins)
        self.told = dict(told)

    def _check_axis(self, name, value, gap, state, begins):
        part, limits, before = self.parts[name], self.limits[name], self.told.get(name)
        if part.role in ("twist", "joint_velocity"):
            before = np.zeros(part.size) if begins or before is None else before
            assert within(part, limits.velocity, value)
            assert within(part, limits.acceleration, (value - before) / max(gap / 1e9, 1e-9))
            assert state == "playing" or (np.abs(value) <= np.abs(before)).all()
            return
        if part.role == "binary":
            assert abs(float(value[0])) == 1.0
            assert state == "playing" or before is None or (value == before).all()
            return
        if before is None:
            return
        if gap <= 0:
            assert (value == before).all(), "no time has passed"
            return
        if state != "playing" and self.rest and not begins:
            assert (value == before).all(), "at rest it does not move"
        speed = way(part, before, value) / (gap / 1e9)
        assert within(part, limits.velocity, speed)
        change = speed - self.speeds.get(name, np.zeros(len(speed)))
        assert within(part, limits.acceleration, change / (gap / 1e9), slack=1e-4)
        assert state == "playing" or begins or self._slows(part, speed, name)
        self.speeds[name] = speed
        outside = self._outside(name, value)
        assert (outside <= self.outside.get(name, 0.0) + 1e-9).all(), "no farther outside"
        self.outside[name] = outside

    def _slows(self, part, speed, name):
        before = self.speeds.get(name, np.zeros(len(speed)))
        return np.linalg.norm(speed) <= np.linalg.norm(before) + 1e-7

    def _outside(self, name, value):
        low, high = self.limits[name].min, self.limits[name].max
        if low is None:
            return np.zeros(1)
        return np.maximum(np.maximum(np.array(low) - value, value - np.array(high)), 0.0)


@pytest.mark.parametrize("robot", ROBOTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(happenings, st.integers(0, 2**16), st.sampled_from([0.05, 0.3, 0.6]))
def test_whatever_arm_and_operator_do_the_player_keeps_to_its_limits(robot, events, seed, start):
    """Steps within velocity, acceleration and elapsed time; never farther outside than it began;
    constant while stopped or holding; nothing before release and chunk.
    """
    flight, rng = Flight(ROBOTS[robot]), np.random.default_rng(seed)
    flight.where = home(ROBOTS[robot], start)
    chunk = ("chunk", 0, seed, 0.003)
    first = [(2, "release", "follow", "even"), (20, chunk, "follow", "even")]
    for ticks, what, arm, clock in [*first, *events]:
        flight.happen(what)
        for i in range(ticks):
            flight.tick(arm, clock if i == 0 or clock in ("late", "jitter") else "even", rng)
