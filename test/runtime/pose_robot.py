"""A robot of two poses, whose policy loop is stepped by hand."""

import dataclasses
from types import SimpleNamespace

import torch

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.policy_loop import PolicyLoop
from diffusion_policy_ros.runtime.sampling import Sampling

MS = 1_000_000
PERIOD = 50 * MS
CONTRACT = Contract.from_text("""
name: one_pose
rate_hz: 20
anchor: a
observations:
  a: {topic: /a, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  b: {topic: /b, type: geometry_msgs/msg/PoseStamped, field: pose.position, max_age_s: 0.1}
action:
  fields: [{name: translation, kind: delta_position, state: a}]
  record: next_state
  limits: {translation: 0.05}
""")


def pose(stamp_ns, x=0.0):
    """A PoseStamped by its attributes."""
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    point = SimpleNamespace(x=x, y=0.0, z=0.0)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp), pose=SimpleNamespace(position=point)
    )


class Network:
    """An engine that answers with what it is told, or raises it."""

    def __init__(self):
        self.value, self.follows = 0.0, []

    def sample(self, observation, *, follow=None, **_):
        self.follows.append(follow)
        if isinstance(self.value, Exception):
            raise self.value
        return torch.full((1, 16, 3), self.value)


class Robot:
    """Messages at 20 Hz into a loop, stepped by hand, and all that it publishes.

    Attributes:
        stalls: whether an inference that is begun does not end, until `finish`.
    """

    def __init__(self, contract=CONTRACT, **changes):
        self.network, self.published, self.changes = Network(), [], []
        self.now, self.stalls, self.under_way = 1_000 * MS, False, None
        sampling = Sampling(1, "ddim", replan_steps=1, n_action_steps=8)
        self.loop = PolicyLoop(
            self.network,
            contract,
            2,
            dataclasses.replace(sampling, **changes),
            self.published.append,
            lambda: self.now,
            lambda: self.changes.append(self.loop.state),
            seed=7,
        )
        self.loop.start(self.now)

    def tick(self, x=0.0, topics=("/b", "/a"), shift=0):
        """The next period's messages, and the inference that they ask for."""
        self.now += PERIOD
        for topic in topics:
            self.loop.push(topic, pose(self.now + shift, x), self.now)
        self.infer()

    def infer(self):
        """As the inference thread: one window at a time, the newest first."""
        if self.under_way is None:
            self.under_way = self.loop.due()
        if self.under_way is not None and not self.stalls:
            request, self.under_way = self.under_way, None
            self.loop.take(self.loop.infer(request))

    def finish(self):
        """What stalled ends, and what waited for it is sampled."""
        self.stalls = False
        self.infer()
        self.infer()

    @property
    def is_holding(self):
        return len(self.published[-1].actions) == 0
