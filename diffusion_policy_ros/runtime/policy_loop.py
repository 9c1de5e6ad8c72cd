"""The policy loop: messages become windows, windows chunks; whatever goes wrong becomes a hold.

The one place that decides whether the robot is told to move, and the same code wherever a policy
runs. It has no thread, no ROS and no clock of its own: `runner.Runner` drives it live with a
thread, `evaluation` and `replay` drive it step by step:

    loop.push(topic, message, arrival_ns)      # whenever a message comes
    loop.poll(now_ns)                          # when `History.settles_ns` says so
    request = loop.due()                       # what is to be sampled now, if anything
    inference = loop.infer(request)            # takes long, and needs nobody's turn
    loop.take(inference)                       # publishes the chunk, or holds
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import Engine
from diffusion_policy_ros.observe.history import GAP, Event, Frame, History, Refused
from diffusion_policy_ros.runtime.arrivals import Arrivals, read_stamp
from diffusion_policy_ros.runtime.counts import Counts, beyond_limits, kind_of
from diffusion_policy_ros.runtime.inference import Inference, Request, infer
from diffusion_policy_ros.runtime.joining import Joiner
from diffusion_policy_ros.runtime.provenance import ProvenanceLog
from diffusion_policy_ros.runtime.sampling import Sampling, drawn_seed
from diffusion_policy_ros.runtime.tail import Chunk
from diffusion_policy_ros.runtime.trace import ChunkTimes, chunk_times

DELAYS = 21
"""Chunks that the delay to reckon with is the median of: few, for it follows what changes."""


class PolicyLoop:
    """Between the messages and the chunks of one robot; one thread at a time calls it.

    No chunk that was begun before a fault comes after its hold.

    Args:
        engine: samples the policy.
        contract: the robot.
        n_obs_steps: To, frames of a window.
        sampling: how chunks are sampled.
        publish: called with each chunk; one without actions means hold.
        now_ns: the clock that messages are stamped by.
        on_change: called when holding begins, ends, or has another reason.
        seed: of the noise; None draws one.
        delay_frames: that a chunk is expected to take, until the first has shown it.

    Attributes:
        sampling: replace it to change it from the next chunk on.
        noise_seed: what the noise follows from, see `noise_generator`.
        wants: whether a chunk is to follow a frame: every ``replan_steps``-th, unless replaced.
        waiting: what is to be sampled, when there is an engine for it; the newest wins.
        active: between `start` and `stop`.
        reason: why the robot holds; empty while chunks flow.
        held: whether somebody asked for it; a stop and a start do not end that.
        inhibited: why no frame is taken at present, whatever comes; empty when they are.
        last_hold: reason of the last hold, also after it has ended.
        counts: what happened.
        arrivals: topic → when its messages came.
        provenance: how the newest chunks were made.
        delay_frames: actions of a chunk that have been sent when it arrives: the median of late
            delays, with the time that actions are sent before they are due, rounded up.
        on_times: called with when each chunk came to pass.
        frame_arrival_ns: when the last frame came or was refused.
        frame_time_ns: the same by the clock that messages are stamped by, or the frame's stamp: a
            simulator's /clock may come after what it is the time of.
        frame_timeout_ns: how long after that the next one is overdue.
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
        delay_frames: int = 0,
    ) -> None:
        self.engine, self.contract, self.sampling = engine, contract, sampling
        self.publish, self.now_ns, self.on_change = publish, now_ns, on_change
        self.seed(seed)
        self.history = History(contract, n_obs_steps)
        self.arrivals = {topic: Arrivals() for topic in contract.topics}
        self.frame_timeout_ns = round(GAP * contract.period_ns + contract.settle_s * 1e9)
        self.wants: Callable[[Frame], bool] = self._wants
        self.on_times: Callable[[ChunkTimes], None] | None = None
        self.counts, self.provenance = Counts(), ProvenanceLog()
        self.reason = self.last_hold = self.inhibited = ""
        self.held = self.active = False
        self.frame_arrival_ns = self.frame_time_ns = 0
        self.waiting: Request | None = None
        self._wrong: dict[str, str] = {}
        self._early_ns = max(map(contract.sent_early_ns, contract.action.fields))
        self._delays_ns: deque[int] = deque(maxlen=DELAYS)
        self._reckon_with(delay_frames * contract.period_ns)
        self._epoch = 0
        self._begin_run()

    # ------------------------------------------------------------------------------------ state

    @property
    def state(self) -> str:
        """``running``, ``inactive``, or ``holding: `` and why."""
        if not self.active:
            return "inactive; told to hold" if self.held else "inactive"
        if self.reason:
            return f"holding: {self.reason}"
        outdated = self.outdated
        return f"running, on what is past: {outdated}" if outdated else "running"

    @property
    def outdated(self) -> str:
        """Which streams come so late that all actions of a chunk are past by then."""
        lasts_s = self.sampling.n_action_steps * self.contract.period_ns / 1e9
        found = [
            f"{stream.name} ({stream.topic}) is {self.arrivals[stream.topic].delay_s:.3f} s old "
            "when it comes"
            for stream in self.contract.observations.values()
            if not stream.static and (self.arrivals[stream.topic].delay_s or 0.0) > lasts_s
        ]
        return f"{'; '.join(found)}; a chunk lasts {lasts_s:.3f} s" if found else ""

    def seed(self, seed: int | None) -> None:
        """Take the noise of all chunks from now on from a seed; None draws one."""
        self.noise_seed = drawn_seed() if seed is None else seed

    def start(self, now_ns: int) -> None:
        """Hold until fresh messages come, then make chunks of them."""
        self.history.reset()
        self._wrong.clear()
        self.active = True
        self.frame_arrival_ns, self.frame_time_ns = now_ns, self.now_ns()
        self.reason = self.inhibited = ""
        self.hold("waiting for fresh messages")

    def stop(self) -> None:
        """Hold; nothing comes after that."""
        if self.active:
            self.reason = ""
            self.hold("deactivated")
        self.active = False

    def set_hold(self, on: bool) -> None:
        """Hold until told otherwise, whatever comes; also over a stop and a start."""
        self.held = on
        if self.active:
            self.hold("waiting for the next frame")

    def inhibit(self, reason: str) -> None:
        """Hold for this reason, whatever comes, until it is empty."""
        self.inhibited = reason
        self.hold(reason or "waiting for the next frame")

    def reset(self, now_ns: int) -> None:
        """Forget what was observed and start anew."""
        self.history.reset()
        self._wrong.clear()
        self.frame_arrival_ns, self.frame_time_ns = now_ns, self.now_ns()
        self.hold("reset; waiting for fresh messages")

    def hold(self, reason: str) -> None:
        """Drop what is being computed and publish a hold, once; then only the reason changes."""
        self._begin_run()
        self._say_hold(reason)

    def _begin_run(self) -> None:
        """The next frame is sampled, and its chunk follows from none before it."""
        self._epoch += 1
        self.waiting = None
        self._frames_to_wait = 0
        self._end_ns: int | None = None
        self._supplied_ns: int | None = None
        # A new one, so that the chunk in the making tells only the old one.
        self._joiner = Joiner(self.contract)
        self.provenance.end_run()

    def _say_hold(self, reason: str) -> None:
        """Publish a hold, once; what is being computed may end it."""
        before = self.reason
        why = [*self._wrong.values(), reason][0]
        self.reason = self.last_hold = "told to hold" if self.held else self.inhibited or why
        if not before:
            self.counts.holds += 1
            nothing = np.empty((0, self.contract.action_dim))
            try:
                self.publish(Chunk(self.now_ns(), nothing, self.contract.period_ns))
            except Exception as error:  # there is nobody else whom it could be told
                self.reason += f"; the hold could not be published: {error!r}"
        if kind_of(before) != kind_of(self.reason):
            self.on_change()

    # --------------------------------------------------------------------- messages to requests

    def push(self, topic: str, msg: Any, arrival_ns: int) -> list[Event]:
        """Take a message.

        Args:
            topic: as the contract names it.
            msg: of the contracted type.
            arrival_ns: now, by a clock that never stands still.

        Returns:
            The frames and faults that came of it.
        """
        received_ns, first = self.now_ns(), self.contract.topics[topic][0]
        stamp, wrong = read_stamp(msg, received_ns) if first.goes_by_stamp else (None, "")
        self.arrivals[topic].note(arrival_ns, None if stamp is None else received_ns - stamp)
        if not self.active:
            if first.static:  # it is said once, mostly before the start
                self.history.push(topic, msg, arrival_ns, received_ns)
            return []
        self._wrong.pop(topic, None)
        if wrong:
            name = self.contract.topics[topic][0].name
            self._wrong[topic] = f"{name} ({topic}): {wrong}"
            return self.refuse(name, self._wrong[topic], arrival_ns)
        return self._take(self.history.push(topic, msg, arrival_ns, received_ns), arrival_ns)

    def refuse(self, key: str, why: str, now_ns: int) -> list[Event]:
        """Hold, for a message could not be taken: no frame may go without it.

        Args:
            key: of what it is an observation.
            why: in words.
            now_ns: by the clock of arrivals.
        """
        if not self.active:
            return []
        self.history.reset()
        return self._take([Refused(self.now_ns(), key, why)], now_ns)

    def poll(self, now_ns: int) -> list[Event]:
        """Close frames that have waited long enough, see `History.poll`."""
        return self._take(self.history.poll(now_ns), now_ns) if self.active else []

    def overdue(self, now_ns: int, note: str = "") -> None:
        """Hold, because no frame has come for `frame_timeout_ns`; a note may say more.

        One that waits for other streams is there, and closes soon.
        """
        if self.active and self.history.settles_ns is None:
            why = self._why_no_frame(now_ns)
            self.hold(f"{why}; {note}" if note else why)

    def due(self) -> Request | None:
        """What is to be sampled now."""
        request, self.waiting = self.waiting, None
        return request

    def _take(self, events: list[Event], now_ns: int) -> list[Event]:
        for event in events:
            self.frame_arrival_ns, self.frame_time_ns = now_ns, max(self.now_ns(), event.time_ns)
            if not isinstance(event, Frame):
                self.counts.refused += isinstance(event, Refused)
                self.hold(event.reason)
        # Of several frames that close at once, the window is the last one's.
        if events and isinstance(events[-1], Frame) and not self.held and not self.inhibited:
            self._watch_supply(events[-1].time_ns)
            self._offer(events[-1], now_ns)
        return events

    def _wants(self, _: Frame) -> bool:
        wanted = self._frames_to_wait <= 0
        self._frames_to_wait = (
            self.sampling.replan_steps - 1 if wanted else self._frames_to_wait - 1
        )
        return wanted

    def _offer(self, frame: Frame, now_ns: int) -> None:
        self.counts.frames += 1
        if not self.wants(frame):
            return
        window = self.history.window()
        assert window is not None, "a frame was just closed"
        self.counts.replaced += self.waiting is not None
        self.waiting = Request(
            frame.time_ns,
            window,
            self.sampling,
            self.noise_seed,
            self._joiner,
            self.delay_frames,
            self._epoch,
            self.history.frames[0].time_ns,
            frame.arrived_ns or now_ns,
            time.monotonic_ns(),
        )

    def _watch_supply(self, time_ns: int) -> None:
        """Hold when what has been sent ended a frame ago, and nothing has come since."""
        period_ns = self.contract.period_ns
        lasts_ns = self.sampling.n_action_steps * period_ns
        if self._supplied_ns is None:
            self._supplied_ns = time_ns + lasts_ns
        over_ns = time_ns - self._supplied_ns
        if over_ns > period_ns / 2:
            waited_s, lasts_s = (over_ns + lasts_ns) / 1e9, lasts_ns / 1e9
            why = f"policy: no chunk for {waited_s:.3f} s, and one lasts {lasts_s:.3f} s"
            self._say_hold(why + _sooner(self.sampling))

    def _why_no_frame(self, now_ns: int) -> str:
        stream = self.contract.observations[self.contract.anchor]
        arrivals = self.arrivals[stream.topic]
        age_s, where = arrivals.age_s(now_ns), f"{stream.name} ({stream.topic})"
        if age_s is None:
            return f"{where}: no message yet"
        # None since the last frame: a simulator's seconds may be shorter than those of arrivals.
        if age_s * 1e9 >= self.frame_timeout_ns or arrivals.times_ns[-1] <= self.frame_arrival_ns:
            return f"{where}: no message for {age_s:.3f} s"
        waited_s = (now_ns - self.frame_arrival_ns) / 1e9
        return f"{where}: messages come, but their stamps made no frame for {waited_s:.3f} s"

    # ----------------------------------------------------------------------- requests to chunks

    def infer(self, request: Request) -> Inference:
        """Sample; the one thing that may go on while another thread calls."""
        return infer(self.engine, self.contract, request)

    def take(self, inference: Inference) -> None:
        """Publish what came of a request, unless a hold has come since; or hold."""
        if inference.request.epoch != self._epoch:
            return
        if inference.chunk is None:
            self._fail(inference.failure)
            return
        self.counts.chunk_ms.append((inference.ended_ns - inference.begun_ns) / 1e6)
        try:
            self._take_chunk(inference, inference.chunk)
        except Exception as error:  # of whoever publishes: this chunk is lost, not the next
            self._fail(f"the chunk could not be published: {error!r}")

    def _fail(self, why: str) -> None:
        self.counts.failures += 1
        self.hold(f"policy: {why}")

    def _take_chunk(self, inference: Inference, chunk: Chunk) -> None:
        request, now_ns = inference.request, self.now_ns()
        missed = self._end_ns is not None and now_ns > self._end_ns
        self.counts.deadline_misses += missed
        self._end_ns = chunk.end_ns
        self.counts.chunks += 1
        made = (request.oldest_ns, request.delay_frames, request.noise_seed, request.sampling)
        self.provenance.note(request.time_ns, *made)
        if chunk.end_ns <= self.history.frames[-1].time_ns:
            self.counts.late += 1
        else:
            self._publish(chunk)
        # In this order: what the steady clock timed then never comes before its frame's stamp.
        steady_ns, now_ns = time.monotonic_ns(), self.now_ns()
        self._delays_ns.append(now_ns - chunk.stamp_ns)
        self._reckon_with(float(np.median(self._delays_ns)))
        if self.on_times is not None:
            steady = (
                request.arrived_ns,
                request.closed_ns,
                inference.begun_ns,
                inference.ended_ns,
            )
            self.on_times(chunk_times(chunk, steady, now_ns, now_ns - steady_ns, missed))

    def _publish(self, chunk: Chunk) -> None:
        self.publish(chunk)
        self._supplied_ns = chunk.end_ns
        held, self.reason = self.reason, ""
        self.counts.latency_ms.append((self.now_ns() - chunk.stamp_ns) / 1e6)
        self.counts.clamped += beyond_limits(chunk.actions, self.contract)
        if held:
            self.on_change()

    def _reckon_with(self, delay_ns: float) -> None:
        sent_ns = delay_ns + self._early_ns
        self.delay_frames = max(math.ceil(sent_ns / self.contract.period_ns), 0)


def _sooner(sampling: Sampling) -> str:
    """The cure where chunks cannot but end before the next one is there."""
    whole = sampling.replan_steps == sampling.n_action_steps > 1
    return f"; set replan_steps to {sampling.n_action_steps // 2}" if whole else ""
