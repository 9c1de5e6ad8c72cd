"""What both lifecycle nodes do alike: bring themselves up, and say why a transition fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

from diffusion_policy_ros.errors import UserError

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class ManagedNode(LifecycleNode):
    """A lifecycle node whose failures are told.

    Attributes:
        failure: why the last transition failed; empty where it did not.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.failure = ""

    def _LifecycleNodeMixin__change_state(self, transition_id: int) -> Any:  # noqa: N802
        """As newer rclpy has it: what does not fit the state is refused. In Humble and Jazzy it is
        raised, and a client that activates twice would end the node.
        """
        try:
            return super()._LifecycleNodeMixin__change_state(transition_id)  # type: ignore[misc]
        except rclpy_implementation.RCLError as error:
            self.get_logger().error(f"no such transition now: {error}")
            return TransitionCallbackReturn.ERROR

    def bring_up(self) -> bool:
        """Configure and activate; whether both went well."""
        return self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS

    def say_unconfigured(self) -> None:
        """Log what it waits for, where it is not to bring itself up."""
        name = self.get_fully_qualified_name()
        self.get_logger().info(f"unconfigured; ros2 lifecycle set {name} configure")

    def attempt(self, what: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        """Take a step of a transition and log why it fails: rclpy would swallow that.

        Args:
            what: the transition, as a verb.
            step: raises where it fails.
        """
        self.failure = ""
        try:
            step()
            return SUCCESS
        except UserError as error:
            self.failure = str(error)
            lines = self.failure.splitlines()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            lines = [traceback.format_exc()]
        for line in lines:
            self.get_logger().error(f"cannot {what}: {line}")
        return FAILURE
