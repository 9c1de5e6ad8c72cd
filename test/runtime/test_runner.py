"""The inference thread: it samples what is newest, and nothing ends it but `stop`."""

import threading
import time

import pytest
from pose_robot import MS, PERIOD, Network, Robot, pose

from diffusion_policy_ros.runtime.runner import Runner


class Gate(Network):
    """A network that answers when it is let."""

    def __init__(self):
        super().__init__()
        self.begun, self.may_go = 0, threading.Event()
        self.may_go.set()

    def sample(self, observation, **how):
        self.begun += 1
        assert self.may_go.wait(60)
        return super().sample(observation, **how)


class Rig(Robot):
    """The loop of a robot with a thread in it."""

    def __init__(self, **changes):
        super().__init__(**changes)
        self.network = self.loop.engine = Gate()
        self.runner = Runner(self.loop)
        self.runner.start()

    def infer(self):
        """The thread does."""

    def tick(self, x=0.0):
        """The next period's messages."""
        self.now += PERIOD
        with self.runner.turn() as loop:
            for topic in ("/b", "/a"):
                loop.push(topic, pose(self.now, x), self.now)

    def chunks(self, count):
        """Stamps of the chunks, once there are so many."""
        self.wait(lambda: len([c for c in list(self.published) if len(c.actions)]) >= count)
        return [chunk.stamp_ns for chunk in self.published if len(chunk.actions)]

    def wait(self, condition):
        """Until it holds, or fail."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def rig():
    """A running rig, stopped at the end."""
    rig = Rig()
    yield rig
    rig.network.may_go.set()
    assert rig.runner.stop()


def test_the_newest_window_wins(rig):
    """While one is computed, later windows replace each other; the count says how many."""
    rig.network.may_go.clear()
    rig.tick()
    rig.wait(lambda: rig.network.begun)
    first = rig.now
    for _ in range(3):
        rig.tick()
    rig.network.may_go.set()
    assert rig.chunks(2) == [first, rig.now]
    assert rig.loop.counts.replaced == 2


def test_a_thread_that_was_left_behind_ends_when_it_can(rig):
    """Stopped while it samples and started again: there is one inference thread, not two."""
    rig.network.may_go.clear()
    rig.tick()
    rig.wait(lambda: rig.network.begun)
    before = rig.runner._thread
    with rig.runner.turn() as loop:
        loop.stop()
    assert not rig.runner.stop(timeout_s=0.0)
    rig.runner.start()
    with rig.runner.turn() as loop:
        loop.start(rig.now)
    rig.tick()
    rig.wait(lambda: rig.loop.waiting is None)
    assert rig.network.begun == 1, "an engine is not made for two at once"
    rig.network.may_go.set()
    assert rig.chunks(1) == [rig.now]
    before.join(60)
    assert not before.is_alive()


def test_nothing_that_is_raised_ends_the_thread(rig):
    """Neither by the network, nor by whoever publishes, nor by a hold in the same moment."""
    rig.tick()
    rig.chunks(1)

    def publish(chunk):
        raise RuntimeError("no memory left")

    rig.loop.publish, rig.network.value = publish, 0.0
    rig.tick()
    rig.wait(lambda: rig.loop.counts.failures == 1)
    assert "published: RuntimeError('no memory left')" in rig.loop.state
    rig.loop.publish, rig.network.value = rig.published.append, ValueError("no such kernel")
    rig.tick()
    rig.wait(lambda: rig.loop.counts.failures == 2)
    rig.network.value = 0.0
    rig.tick()
    assert rig.chunks(2)[-1] == rig.now


def test_holds_at_any_moment_of_an_inference_leave_it_alive(rig):
    """History is emptied by one thread while the other hands over what it has made of it."""
    ended = threading.Event()

    def reset():
        while not ended.wait(1e-4):  # no fair lock: on one core a busy loop would keep it
            with rig.runner.turn() as loop:
                loop.reset(rig.now)

    other = threading.Thread(target=reset)
    other.start()
    for _ in range(300):
        rig.tick()
    ended.set()
    other.join(60)
    rig.now += 100 * MS
    rig.tick()
    rig.wait(lambda: rig.published[-1].stamp_ns == rig.now and len(rig.published[-1].actions))
    assert rig.loop.counts.failures == 0
    order = [chunk.stamp_ns for chunk in rig.published if len(chunk.actions)]
    assert order == sorted(order)
