"""Whose chunks the action player plays, and why it does not."""

from __future__ import annotations

from collections import deque
from typing import Any

from rclpy.node import Node
from std_msgs.msg import String

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import first_line
from diffusion_policy_ros.ros.qos import LATCHED, publishers

RECENT = 10
"""Chunks whose numbers are looked at: one source counts up, and begins anew once it restarts."""


class ChunkSource:
    """A policy node as its player sees it: its contract, and who else publishes chunks.

    Args:
        node: listens.
        policy: the policy node's name, absolute or relative.
        on_contract: called when a contract was heard.

    Attributes:
        topic: of the chunks.
        contract_topic: where the contract is published.
        contract: the newest that was heard; None before.
        problem: why what was heard is no contract.
    """

    def __init__(self, node: Node, policy: str, on_contract: Any) -> None:
        self._node, self._on_contract = node, on_contract
        self.topic, self.contract_topic = f"{policy}/action_chunk", f"{policy}/contract"
        self.contract: Contract | None = None
        self.problem = ""
        self._numbers: deque[int] = deque(maxlen=RECENT)
        node.create_subscription(String, self.contract_topic, self._hear, LATCHED)

    def _hear(self, message: String) -> None:
        try:
            self.contract, self.problem = Contract.from_text(message.data), ""
        except Exception as error:  # whatever was published: the player lives on, and says why
            self.problem = f"{self.contract_topic} is no contract: {first_line(error)}"
        self._on_contract()

    def doubt(self, contract: Contract, number: int | None) -> str:
        """Why a chunk that came is not to be played.

        Args:
            contract: of the player.
            number: the message's, as its publisher counts; None where ROS does not tell.

        Returns:
            With both sides and the cure; empty when nothing is wrong.
        """
        return self._crowd(number) or self._foreign(contract)

    def _crowd(self, number: int | None) -> str:
        found = publishers(self._node, self.topic)
        names = {f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in found}
        if number is not None:
            self._numbers.append(number)
        numbers = list(self._numbers)
        back = sum(b <= a for a, b in zip(numbers, numbers[1:], strict=False))
        if len(names) < 2 and back < 2:
            return ""
        several = f"{len(names)} nodes" if len(names) > 1 else "several nodes of one name"
        return f"{several} publish {self.topic}: {', '.join(sorted(names))}; end all but one"

    def _foreign(self, contract: Contract) -> str:
        if self.problem:
            return self.problem
        if self.contract is None:
            # A publisher of chunks that says no contract is taken at its names, frame and rate.
            told = publishers(self._node, self.contract_topic)
            return f"{self.contract_topic} has not been heard yet" if told else ""
        difference = contract.action_difference(self.contract)
        if not difference:
            return ""
        cure = "give both the same contract"
        return f"the policy's actions are not those of {contract.name}: {difference}; {cure}"
