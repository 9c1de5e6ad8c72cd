"""Watches a demo over DDS and prints what it hears as JSON lines: one for each episode, one a
second of diagnostics, and an empty one a second, so that whoever reads it can look around.

`diffusion-policy demo` starts it as a process of its own, because nothing but nodes may need
rclpy.
"""

from __future__ import annotations

import json
import sys

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

POLICY = "/policy_node: policy"
"""The status that is meant, of `ros.policy_node`."""


class DemoMonitor(Node):
    """Prints episodes and the policy's diagnostics to standard output."""

    def __init__(self) -> None:
        super().__init__("demo_monitor")
        # Latched: an episode may be over before this node has found the robot.
        qos = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(String, "/sim_robot/episode", self._episode, qos)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._diagnostics, 100)
        self.create_timer(1.0, lambda: _print({}))

    def _episode(self, msg: String) -> None:
        _print({"episode": json.loads(msg.data)})

    def _diagnostics(self, msg: DiagnosticArray) -> None:
        # Drivers of real robots, which may share a domain that was chosen, say there how they are.
        for status in (one for one in msg.status if one.name == POLICY):
            _print(
                {
                    "policy": {
                        "message": status.message,
                        **{pair.key: pair.value for pair in status.values},
                    }
                }
            )


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run until interrupted."""
    rclpy.init()
    node = DemoMonitor()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException, BrokenPipeError):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
