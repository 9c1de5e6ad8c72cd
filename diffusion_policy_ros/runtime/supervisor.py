"""Messages become chunks; whatever goes wrong becomes a hold.

The one place that decides whether the robot is told to move. It feeds the frame rule, offers
frames to the runner, holds when they fail to come, and says why. The node gives it messages and
the time; nothing here reads a clock of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.observe.codecs import Array, stamp_ns
from diffusion_policy_ros.observe.history import GAP, Event, Frame, History, Refused
from diffusion_policy_ros.runtime.playback import Chunk
from diffusion_policy_ros.runtime.runner import STOP_S, Runner, Sampling

RECENT = 64
"""Messages that a stream's rate is taken over."""
AHEAD_NS = 1_000_000_000
"""How far a stamp may be ahead of our clock: simulated time may lag, and clocks differ, but not so
much."""


@dataclass
class Arrivals:
    """When the messages of one topic came.

    Attributes:
        count: messages so far.
        delay_s: from the newest one's stamp to its arrival, by the clock that stamps are of.
    """

    count: int = 0
    delay_s: float | None = None
    times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))

    def note(self, arrival_ns: int, delay_ns: int | None) -> None:
        """A message came."""
        self.count += 1
        self.times_ns.append(arrival_ns)
        self.delay_s = None if delay_ns is None else delay_ns / 1e9

    def age_s(self, now_ns: int) -> float | None:
        """Time since the newest message; None before the first."""
        return (now_ns - self.times_ns[-1]) / 1e9 if self.times_ns else None

    def rate_hz(self, now_ns: int) -> float:
        """Messages a second, sinking while none come."""
        if len(self.times_ns) < 2:
            return 0.0
        intervals = len(self.times_ns) - 1
        span_ns = self.times_ns[-1] - self.times_ns[0]
        waited_ns = now_ns - self.times_ns[-1] - span_ns / intervals
        return intervals / max(span_ns + max(waited_ns, 0), 1) * 1e9


class Supervisor:
    """Between the messages and the chunks of one robot.

    One thread at a time calls it. `publish` and `on_change` are called by that one or by the
    inference thread; no chunk that was begun before a fault comes after its hold.

    Args:
        engine: samples the policy.
        contract: the robot.
        n_obs_steps: To, frames of a window.
        sampling: how chunks are sampled.
        publish: called with each chunk; one without actions means hold.
        now_ns: the clock that messages are stamped by.
        on_change: called when holding begins or ends.
        seed: of the noise; None draws one.

    Attributes:
        reason: why the robot holds; empty while chunks flow.
        held: whether somebody asked for it.
        barred: why no frame is taken at present, whatever comes; empty when they are.
        last_hold: reason of the last hold, also after it has ended.
        holds: how often it began to hold.
        refused: frames that could not be made.
        late: chunks that were dropped because their last action was past.
        clamped: actions beyond the contract's limits, which playback clamps.
        arrivals: topic → when its messages came.
        latency_ms: of recent chunks, from the newest frame's stamp to the publication.
        heard_ns: when the last frame came or was refused.
        heard_at_ns: the same by the clock that messages are stamped by.
        limit_ns: how long after that the next one is overdue.
    """

    def __init__(
        self,
        engine: Engine,
        contract: Contract,
        n_obs_steps: int,
        sampling: Sampling,
        publish: Callable[[Chunk], None],
        now_ns: Callable[[], int],
        on_change: Callable[[], None] = lambda: None,
        seed: int | None = None,
    ) -> None:
        self.contract, self.publish = contract, publish
        self.now_ns, self.on_change = now_ns, on_change
        self.history = History(contract, n_obs_steps)
        self.runner = Runner(
            engine, contract, sampling, self._on_chunk, self._on_fault, now_ns, seed
        )
        self.arrivals = {topic: Arrivals() for topic in contract.topics}
        self.limit_ns = round(GAP * contract.period_ns + contract.settle_s * 1e9)
        self.reason = self.last_hold = self.barred = ""
        self.held = self.active = False
        self.holds = self.refused = self.late = self.clamped = self.heard_ns = self.heard_at_ns = 0
        self._wrong: dict[str, str] = {}
        self._saying = threading.RLock()
        self._supplied_ns: int | None = None
        self.latency_ms: deque[float] = deque(maxlen=1000)

    @property
    def state(self) -> str:
        """``running``, ``inactive``, or ``holding: `` and why."""
        if not self.active:
            return "inactive"
        return f"holding: {self.reason}" if self.reason else "running"

    def start(self, now_ns: int) -> None:
        """Hold until fresh messages come, then make chunks of them."""
        self.history.reset()
        self._wrong.clear()
        self.runner.start()
        self.active, self.held = True, False
        self.heard_ns, self.heard_at_ns = now_ns, self.now_ns()
        self.reason = self.barred = ""
        self.hold("waiting for fresh messages")

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """Hold, then end the inference thread; whether it ended in time.

        What goes on after that is thrown away when it ends.
        """
        if self.active:
            self.reason = ""
            self.hold("deactivated")
        self.active = False
        return self.runner.stop(timeout_s)

    def push(self, topic: str, msg: Any, arrival_ns: int) -> None:
        """Take a message.

        Args:
            topic: as the contract names it.
            msg: of the contracted type.
            arrival_ns: now, by a clock that never stands still.
        """
        received_ns = self.now_ns()
        stamp, wrong = _stamp(msg, received_ns)
        delay_ns = None if stamp is None else received_ns - stamp
        self.arrivals[topic].note(arrival_ns, delay_ns)
        if not self.active:
            return
        self._wrong.pop(topic, None)
        if wrong:
            name = self.contract.topics[topic][0].name
            self._wrong[topic] = f"{name} ({topic}): {wrong}"
            self.history.reset()  # no frame may go without it
            self._take([Refused(received_ns, name, self._wrong[topic])], arrival_ns)
        else:
            self._take(self.history.push(topic, msg, arrival_ns, received_ns), arrival_ns)

    def poll(self, now_ns: int) -> None:
        """Close frames that have waited long enough, see `History.poll`."""
        if self.active:
            self._take(self.history.poll(now_ns), now_ns)

    def overdue(self, now_ns: int, note: str = "") -> None:
        """Hold, because no frame has come for `limit_ns`; a note may say more.

        One that waits for other streams is there, and closes soon.
        """
        if self.active and self.history.settles_ns is None:
            why = self._why_no_frame(now_ns)
            self.hold(f"{why}; {note}" if note else why)

    def set_hold(self, on: bool) -> None:
        """Hold until told otherwise, whatever comes."""
        self.held = on
        self.hold("waiting for the next frame")

    def reset(self, now_ns: int) -> None:
        """Forget what was observed and start anew."""
        self.history.reset()
        self._wrong.clear()
        self.heard_ns, self.heard_at_ns = now_ns, self.now_ns()
        self.hold("reset; waiting for fresh messages")

    def bar(self, reason: str) -> None:
        """Hold for this reason, whatever comes, until it is empty."""
        self.barred = reason
        self.hold(reason or "waiting for the next frame")

    def hold(self, reason: str) -> None:
        """Drop what is being computed and publish a hold, once; then only the reason changes."""
        self.runner.cancel()
        self._supplied_ns = None
        self._say_hold(reason)

    def _say_hold(self, reason: str) -> None:
        """Publish a hold, once; what is being computed may end it."""
        with self._saying:
            begins = not self.reason
            why = [*self._wrong.values(), reason][0]
            self.reason = self.last_hold = "told to hold" if self.held else self.barred or why
            if begins:
                self.holds += 1
                nothing = np.empty((0, self.contract.action_dim))
                self.publish(Chunk(self.now_ns(), nothing, self.contract.period_ns))
                self.on_change()

    def _take(self, events: list[Event], now_ns: int) -> None:
        for event in events:
            self.heard_ns, self.heard_at_ns = now_ns, self.now_ns()
            if not isinstance(event, Frame):
                self.refused += isinstance(event, Refused)
                self.hold(event.reason)
        # Of several frames that close at once, the window is the last one's.
        if events and isinstance(events[-1], Frame) and not self.held and not self.barred:
            self._watch_supply(events[-1].time_ns)
            newest, oldest = events[-1], self.history.frames[0]
            self.runner.offer(newest.time_ns, self._window, newest.arrived_ns, oldest.time_ns)

    def _watch_supply(self, time_ns: int) -> None:
        """Hold when what has been sent ended a frame ago, and nothing has come since."""
        sampling, period_ns = self.runner.sampling, self.contract.period_ns
        lasts_ns = sampling.n_action_steps * period_ns
        with self._saying:
            if self._supplied_ns is None:
                self._supplied_ns = time_ns + lasts_ns
            over_ns = time_ns - self._supplied_ns
            if over_ns > period_ns / 2:
                waited_s, lasts_s = (over_ns + lasts_ns) / 1e9, lasts_ns / 1e9
                why = f"policy: no chunk for {waited_s:.3f} s, and one lasts {lasts_s:.3f} s"
                self._say_hold(why + _sooner(sampling))

    def _window(self) -> dict[str, Array]:
        window = self.history.window()
        assert window is not None, "a frame was just closed"
        return window

    def _why_no_frame(self, now_ns: int) -> str:
        stream = self.contract.observations[self.contract.anchor]
        arrivals = self.arrivals[stream.topic]
        age_s, where = arrivals.age_s(now_ns), f"{stream.name} ({stream.topic})"
        if age_s is None:
            return f"{where}: no message yet"
        # None since the last frame: a simulator's seconds may be shorter than those of arrivals.
        if age_s * 1e9 >= self.limit_ns or arrivals.times_ns[-1] <= self.heard_ns:
            return f"{where}: no message for {age_s:.3f} s"
        waited_s = (now_ns - self.heard_ns) / 1e9
        return f"{where}: messages come, but their stamps made no frame for {waited_s:.3f} s"

    def _on_chunk(self, chunk: Chunk) -> None:
        with self._saying:
            frames = self.history.frames
            if frames and chunk.end_ns <= frames[-1].time_ns:
                self.late += 1
                return
            self.publish(chunk)
            self._supplied_ns = chunk.end_ns
            begins, self.reason = bool(self.reason), ""
        self.latency_ms.append((self.now_ns() - chunk.stamp_ns) / 1e6)
        self.clamped += beyond_limits(chunk.actions, self.contract)
        if begins:
            self.on_change()

    def _on_fault(self, reason: str) -> None:
        self.hold(f"policy: {reason}")


def _sooner(sampling: Sampling) -> str:
    """The cure where chunks cannot but end before the next one is there."""
    whole = sampling.replan_steps == sampling.n_action_steps > 1
    return f"; set replan_steps to {sampling.n_action_steps // 2}" if whole else ""


def _stamp(msg: Any, now_ns: int) -> tuple[int | None, str]:
    """A message's stamp, if it has one, and what is wrong with it."""
    try:
        stamp = stamp_ns(msg)
    except UserError as error:
        return None, str(error)
    return stamp, "" if stamp is None else _why_impossible(stamp, now_ns)


def _why_impossible(stamp: int, now_ns: int) -> str:
    """What is wrong with a message's stamp, by the clock that it is to be of; empty if nothing."""
    if stamp == 0:
        return "its stamp is zero; let its driver fill header.stamp"
    if stamp - now_ns <= AHEAD_NS:
        return ""
    if now_ns == 0:
        return "the node has no time yet; publish /clock, or set use_sim_time to false"
    ahead_s = (stamp - now_ns) / 1e9
    return f"its stamp is {ahead_s:.3f} s ahead of the node's clock; set the clocks alike"


def beyond_limits(actions: NDArray[np.float64], contract: Contract) -> int:
    """How many actions exceed what the contract allows in one action, or its joints' ranges.

    Args:
        actions: (n, Da), physical units.
        contract: gives the limits.
    """
    limits, beyond = contract.action.limits, np.zeros(len(actions), dtype=bool)
    for part in contract.action.fields:
        value = actions[:, contract.action.slices[part.name]]
        length = {"delta_position": limits.translation, "delta_axis_angle": limits.rotation}
        limit = length.get(part.kind)
        if limit is not None:
            beyond |= np.linalg.norm(value, axis=1) > limit
        if part.kind == "joint_position" and limits.joint_min:
            beyond |= ((value < limits.joint_min) | (value > limits.joint_max)).any(axis=1)
        if part.kind == "position" and limits.workspace_min:
            beyond |= ((value < limits.workspace_min) | (value > limits.workspace_max)).any(axis=1)
    return int(beyond.sum())
