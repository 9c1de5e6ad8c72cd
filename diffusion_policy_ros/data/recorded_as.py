"""By which contract and which topics a bag is read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.contract.messages import TF_STATIC
from diffusion_policy_ros.data.bags import Bag
from diffusion_policy_ros.errors import UserError, names_said

OF_THE_PLAYER = re.compile(r"\.(limits|send)\b")
"""Keys of a contract that no recording depends on."""


def cell_of(bag: Bag, contract: Contract) -> Contract:
    """The contract that a bag was recorded with, where it means the same; else the one given.

    So topics, types and encodings may have changed since.
    """
    text = bag.metadata.get("contract", "")
    recorded = Contract.from_text(text, f"{bag.path}: contract") if text else contract
    return recorded if recorded.hash == contract.hash else contract


def other_cell(bag: Bag, contract: Contract) -> str:
    """How the contract that a bag was recorded with differs from the one that it is read by."""
    text = bag.metadata.get("contract", "")
    if text in ("", contract.text):
        return ""
    try:
        recorded = Contract.from_text(text)
    except UserError:
        return ""  # of another age
    cell = (key for key in contract.cell_difference(recorded) if not OF_THE_PLAYER.search(key))
    differs = contract.difference(recorded) or names_said(cell)
    told = f"it was recorded with another contract, which is not used: {differs}"
    return told if differs else ""


def resolve_topics(bag: Bag, wanted: Mapping[str, str]) -> dict[str, str]:
    """The contract's topics → the bag's, where a relative one was recorded below a namespace.

    Args:
        bag: the recording.
        wanted: topic → message type, as the contract has them.

    Raises:
        UserError: a topic is not in the bag, or of another type.
    """
    found: dict[str, str] = {}
    for topic, kind in wanted.items():
        below = [t for t in bag.topics if topic[0] != "/" and t.endswith(f"/{topic}")]
        fitting = [topic] if topic in bag.topics else below
        came = any(bag.topics[t][1] for t in fitting)
        if topic == TF_STATIC and not came:
            continue  # a tree that only moves
        if not came:
            what = (
                "has no messages"
                if fitting
                else f"is not in the bag, which has {names_said(bag.topics)}"
            )
            raise UserError(f"{topic} {what}", "", "record it, or mend the contract")
        if len(fitting) > 1:
            raise UserError(
                f"'{topic}' may be {' or '.join(fitting)}",
                "",
                "write the whole name in the contract",
            )
        recorded = bag.topics[fitting[0]][0]
        if recorded != kind:
            raise UserError(
                f"{topic} is {recorded} in the bag, {kind} in the contract",
                "",
                "mend the contract",
            )
        found[topic] = fitting[0]
    return found
