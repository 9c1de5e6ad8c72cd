"""What a tick of the action player's core costs: three robots at 250 Hz, one after the other.

    python benchmark/player.py [--json] [--seconds 60] [--rate 250]

cartesian   deltas of a pose and a gripper
joints      seven joints, accelerations limited
two_arms    14 numbers: position, rotation and gripper, twice

tick_ms_p50, tick_ms_p99   processor time of a tick, of the thread, ms: all checks, limits and
                           look-ahead, with an arm that follows behind; no ROS
tick_ms_warm_p50           the same without waiting between two ticks: the difference is of the
                           processor's caches, which are cold after each wait
ticks_late_share           ticks that came more than half a period late: of the machine and of
                           this process, for ticks are timed here, too

Chunks of 16 actions at 20 Hz come every 0.4 s. The aims are 0.25 and 1 ms.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.runtime.player import Player
from diffusion_policy_ros.runtime.tail import Chunk

POSE = "type: geometry_msgs/msg/PoseStamped, field: pose"
HEAD = "name: {name}\nrate_hz: 20\nanchor: {anchor}\nobservations:\n"
MOVE = "limits: {velocity: 0.25, acceleration: 1.5, lead: 0.1, jump: 0.1, min: -0.6, max: 0.6}"
TURN = "limits: {velocity: 1.5, acceleration: 8, lead: 0.5, jump: 0.5}"
CHUNK, EVERY_S = 16, 0.4


def contracts() -> dict[str, Contract]:
    """Name → robot."""
    arms = {"cartesian": ["arm"], "two_arms": ["left", "right"]}
    found = {name: _poses(name, sides) for name, sides in arms.items()}
    names = ", ".join("abcdefg")
    joints = HEAD.format(name="joints", anchor="q") + (
        f"  q: {{topic: /joint_states, type: sensor_msgs/msg/JointState, names: [{names}]}}\n"
        "action:\n  record: next_state\n  fields:\n"
        "    - {name: arm, kind: joint_position, size: 7, state: q, limits: {velocity: 1,"
        " acceleration: 5, lead: 0.3, jump: 0.3, min: -2, max: 2}}\n"
    )
    found["joints"] = Contract.from_text(joints)
    return found


def _poses(name: str, sides: list[str]) -> Contract:
    kinds = (
        ("delta_position", "delta_axis_angle") if len(sides) == 1 else ("position", "axis_angle")
    )
    text = HEAD.format(name=name, anchor=f"{sides[0]}_p")
    for side in sides:
        text += f"  {side}_p: {{topic: /{side}, {POSE}.position}}\n"
        text += f"  {side}_q: {{topic: /{side}, {POSE}.orientation}}\n"
    shape = 7 * len(sides)
    record = f"{{topic: /c, type: std_msgs/msg/Float64MultiArray, shape: [{shape}]}}"
    text += f"action:\n  record: {record}\n  fields:\n"
    for side in sides:
        send = f"send: {{topic: /{side}/target}}"
        text += f"    - {{name: {side}, kind: {kinds[0]}, state: {side}_p, {send}, {MOVE}}}\n"
        text += f"    - {{name: {side}_turn, kind: {kinds[1]}, state: {side}_q, {send}, {TURN}}}\n"
        text += f"    - {{name: {side}_hand, kind: binary}}\n"
    return Contract.from_text(text)


class Robot:
    """A robot that follows its set-points behind, and the chunks of a policy that moves it."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.where = {
            part.state: np.array([0.0, 0, 0, 1])
            if part.role == "rotation"
            else np.zeros(part.size)
            for part in contract.action.fields
            if part.state
        }

    def chunk(self, stamp_ns: int) -> Chunk:
        """A slow sway about where it began."""
        period_ns = self.contract.period_ns
        seconds = (stamp_ns + np.arange(CHUNK) * period_ns)[:, None] / 1e9
        phases = np.arange(self.contract.action_dim)
        actions = 0.05 * np.sin(seconds + phases) - 0.05 * np.sin(phases)
        for part in self.contract.action.fields:
            if part.is_delta:
                actions[:, self.contract.action.slices[part.name]] *= 0.1
        return Chunk(stamp_ns, actions, period_ns)

    def follow(self, told: Any) -> None:
        """Go part of the way to each set-point."""
        for part in self.contract.action.fields:
            if part.state and part.name in told:
                here = self.where[part.state]
                self.where[part.state] = here + 0.1 * (told[part.name] - here)


def ticks(
    name: str, contract: Contract, seconds: float, rate_hz: float, waits: bool
) -> tuple[list[float], int]:
    """What ticks of so long took, ms, and how many were late; in real time where it waits."""
    player, robot = Player(contract, rate_hz), Robot(contract)
    period_ns, took_ms, late = round(1e9 / rate_hz), list[float](), 0
    begun_ns = now_ns = time.monotonic_ns()
    player.release(begun_ns)
    next_ns, chunk_ns = begun_ns, begun_ns
    while now_ns - begun_ns < seconds * 1e9:
        next_ns += period_ns
        if waits:
            time.sleep(max(next_ns - time.monotonic_ns(), 0) / 1e9)
        now_ns = time.monotonic_ns() if waits else next_ns
        late += now_ns - next_ns > period_ns / 2
        if now_ns >= chunk_ns:
            player.offer(robot.chunk(now_ns), now_ns)
            chunk_ns += round(EVERY_S * 1e9)
        before_ns = time.thread_time_ns()
        told = player.tick(now_ns, robot.where, dict.fromkeys(robot.where, now_ns))
        took_ms.append((time.thread_time_ns() - before_ns) / 1e6)
        robot.follow(told or {})
        next_ns = max(next_ns, now_ns - period_ns)
    if player.state != "playing":
        raise SystemExit(f"{name}: {player.state}: {player.why}")
    return took_ms, late


def measure(name: str, contract: Contract, seconds: float, rate_hz: float) -> dict[str, Any]:
    """The figures of a robot."""
    took_ms, late = ticks(name, contract, seconds, rate_hz, waits=True)
    warm_ms, _ = ticks(name, contract, seconds, rate_hz, waits=False)
    p50, p99 = np.percentile(took_ms, (50, 99))
    return {
        "name": name,
        "tick_ms_p50": round(float(p50), 4),
        "tick_ms_p99": round(float(p99), 4),
        "tick_ms_warm_p50": round(float(np.median(warm_ms)), 4),
        "ticks_late_share": round(late / len(took_ms), 4),
    }


def main() -> None:
    """Measure each robot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each robot")
    parser.add_argument("--rate", type=float, default=250.0, help="of the ticks, Hz")
    args = parser.parse_args()
    for name, contract in contracts().items():
        found = measure(name, contract, args.seconds, args.rate)
        print(json.dumps(found) if args.json else "  ".join(f"{k} {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
