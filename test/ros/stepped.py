"""A robot whose time goes on when the test says so: nothing depends on how busy the machine is."""

import time
from pathlib import Path

from live import START_S
from nodes import PERIOD_NS, Policy, Robot
from rosgraph_msgs.msg import Clock
from trajectory_msgs.msg import JointTrajectory

from diffusion_policy_ros.observe.codecs import stamp_ns
from diffusion_policy_ros.ros.chunks import time_msg

AGAIN_S = 0.5
"""After so long a frame is sent once more: DDS may lose a message, and duplicates do no harm."""
AHEAD = 6
"""Frames without an answer, of those that a node keeps: whatever is missed is reported by then."""
FAULTY = Path(__file__).with_name("faulty_policy.py")


class SteppedRobot(Robot):
    """Publishes /clock, and a frame at each step.

    Attributes:
        now_ns: its time.
        ticks: how many ns its clock is ahead of that.
    """

    def __init__(self, domain, **kwargs):
        super().__init__(domain, **kwargs)
        self.silence()
        self.now_ns, self.ticks = 1_000 * 10**9, 0
        self.clock = domain.node.create_publisher(Clock, "/clock", 10)
        self._sent = []
        self.step()

    def publish(self, topic, message):
        self._sent.append((topic, message))
        super().publish(topic, message)

    def tell_time(self):
        """Publish /clock."""
        self.clock.publish(Clock(clock=time_msg(self.now_ns + self.ticks)))

    def tick(self):
        """Its clock goes on by a ns; what is stamped by then was stamped after this."""
        self.ticks += 1
        self.tell_time()
        return self.now_ns + self.ticks

    def step(self):
        """One frame later; the clock comes last, so that it is never ahead of the frame."""
        self.now_ns, self.ticks = self.now_ns + PERIOD_NS, 0
        self._sent = []
        self.send(self.now_ns)
        self.tell_time()

    def jump(self, seconds):
        """Its time becomes another."""
        self.now_ns, self.ticks = self.now_ns + round(seconds * 1e9), 0
        self._sent = []
        self.tell_time()

    def again(self):
        """The same frame once more."""
        for entry in list(self._sent):
            super().publish(*entry)
        self.tell_time()


class PacedRobot(SteppedRobot):
    """Its frames come by themselves, and its time waits for a node that falls behind.

    So no message is ever late on a busy machine, and what the node says is of the test's making.
    """

    def __init__(self, domain, **kwargs):
        super().__init__(domain, **kwargs)
        self._answers = domain.listen(JointTrajectory, "/policy_node/action_chunk")
        self._answered, self._ahead = 0, 0
        self.resume()

    def _tick(self):
        if len(self._answers) > self._answered:
            self._answered, self._ahead = len(self._answers), 0
        if self._ahead < AHEAD or not self._answers or not self._answers[-1].points:
            self._ahead += 1
            self.step()
        else:
            self.tell_time()


class SteppedPolicy(Policy):
    """The policy node that follows it, with faults that a test can set.

    Attributes:
        faults: the folder of `faulty_policy.py`.
    """

    def __init__(self, domain, robot, checkpoint, **parameters):
        self.robot, self.faults = robot, domain.folder / "faults"
        self.faults.mkdir()
        self.seen = 0
        settings = {"use_sim_time": True, "replan_steps": 1, **parameters}
        super().__init__(domain, checkpoint, **settings)

    def start(self, domain, parameters):
        return domain.start(FAULTY, self.faults, threads=1, **parameters)

    def _until(self, done, why, again=None):
        """Wait, and send the frame, or what else it was, again where it may have been lost."""
        again, due = again or self.robot.again, [time.monotonic() + AGAIN_S]

        def is_done():
            if time.monotonic() > due[0]:
                again()
                due[0] = time.monotonic() + AGAIN_S
            return done()

        self.domain.until(is_done, why=why)

    def next_output(self, why="an answer"):
        """The next chunk or hold to the frames that have been sent."""
        self._until(lambda: len(self.outputs) > self.seen, why)
        self.seen += 1
        return self.outputs[self.seen - 1]

    def count(self, name):
        """A number of its diagnostics."""
        return int(self.values[name])

    def observe(self):
        """Send a frame and wait until the node has it, whatever comes of it."""
        self.until_reported()
        before = self.count("frames")
        self.robot.step()
        self._until(lambda: self.count("frames") > before, "it takes the frame")

    def until_reported(self):
        """Wait for diagnostics that are made from now on: others may still be on their way."""
        seen, since_ns = len(self.arrays), self.robot.tick()
        self._until(
            lambda: any(stamp_ns(array) >= since_ns for array in self.arrays[seen:]),
            "it reports",
            self.robot.tell_time,
        )

    def answer(self):
        """Send a frame and wait for what comes of it."""
        self.robot.step()
        return self.next_output()

    def must_follow(self):
        """The next frame has its chunk, before anything else comes."""
        chunk = self.answer()
        told = [(len(each.points), stamp_ns(each)) for each in self.outputs[-5:]]
        if not chunk.points or stamp_ns(chunk) != self.robot.now_ns:
            self.until_reported()
            raise AssertionError((self.robot.now_ns, told, self.values["last_hold"]))

    def until_running(self):
        """Wait until it follows: three frames, each with its chunk, and it says so."""
        deadline, followed = time.monotonic() + START_S, 0
        while followed < 3:
            assert time.monotonic() < deadline, self.process.output
            self.robot.step()
            patience = time.monotonic() + AGAIN_S
            self.domain.until(lambda: self._follows() or time.monotonic() > patience)  # noqa: B023
            followed = followed + 1 if self._follows() else 0
        self.seen = len(self.outputs)
        self.until_says("running")

    def _follows(self):
        """Whether the newest frame has its chunk."""
        return bool(self.chunks) and stamp_ns(self.chunks[-1]) == self.robot.now_ns

    def step_until_says(self, words):
        """Frame after frame, until the diagnostics say so."""
        deadline = time.monotonic() + START_S
        while words not in self.reports[-1].message:
            assert time.monotonic() < deadline, self.reports[-1].message
            self.robot.step()
            self.until_reported()

    def must_recover(self, since_ns):
        """Chunks come, of frames after this time only, before any other hold."""
        seen = self.seen
        self.until_running()
        new = self.outputs[seen:]
        assert new[0].points, "it held once more"
        assert all(stamp_ns(chunk) > since_ns for chunk in new if chunk.points)

    def must_hold_for(self, stamp, words):
        """The next output is a hold, of that time at the latest, and it says why."""
        hold = self.next_output("it holds")
        assert not hold.points, f"a chunk of {stamp_ns(hold)} came first"
        assert stamp_ns(hold) <= stamp
        self.must_say(words)

    def must_say(self, words):
        """The diagnostics give the reason, one of those between |; no second hold comes for it."""
        self.domain.until(
            lambda: self.reports and any(w in self.reports[-1].message for w in words.split("|")),
            why=lambda: f"it reports {words!r}, but {self.reports[-1].message!r}",
        )
        assert self.reports[-1].message.startswith("holding: ")
        assert len(self.outputs) == self.seen
