"""What the demo does in each simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_policy_ros.policy.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What to do in a simulator; durations as seen on two cores, changes of the recipe."""

    contract: str
    recipe: str
    demonstrations: int
    record: str
    train: str
    changes: tuple[str, ...] = ()

    def recipe_with(self, settings: list[str]) -> Recipe:
        """The recipe, with what the task and the user change."""
        from diffusion_policy_ros.policy.recipe import Recipe, parse_overrides

        own = parse_overrides([*self.changes])
        return Recipe.load(self.recipe, own | parse_overrides(settings))


PLANS = {
    ("mini_lift", "cameras"): Plan(
        "mini_lift", "mini_lift", 300, "about half a minute", "about 6 minutes"
    ),
    ("mini_lift", "state"): Plan(
        "mini_lift_state", "mini_lift_state", 200, "about 15 seconds", "about 2 minutes"
    ),
    ("mini_bypass", "state"): Plan(
        "mini_bypass", "mini_bypass", 200, "about 10 seconds", "about a minute"
    ),
    ("robosuite/lift", "state"): Plan(
        "robosuite_state", "small_state", 200, "about 2 minutes", "about 2 minutes"
    ),
    ("robosuite/lift", "cameras"): Plan(
        "robosuite",
        "mini_lift",
        200,
        "about 5 minutes",
        "about 9 minutes",
        ("training.updates=3500",),
    ),
    ("robosuite/can", "state"): Plan(
        "robosuite_state",
        "small_state",
        100,
        "about 2 minutes",
        "about 4 minutes",
        ("training.updates=5000",),
    ),
    ("robosuite/square", "state"): Plan(
        "robosuite_state",
        "small_state",
        200,
        "about 5 minutes",
        "about 15 minutes",
        ("training.updates=16000", "policy.replan_steps=4"),
    ),
    ("pusht", "state"): Plan(
        "pusht_state",
        "small_state",
        500,
        "about 15 minutes",
        "about 15 minutes",
        ("training.updates=16000", "policy.replan_steps=4"),
    ),
}
OTHERS = {
    "cameras": Plan("", "mini_lift", 300, "as long as it takes", "about 7 minutes"),
    "state": Plan("", "small_state", 200, "as long as it takes", "a few minutes"),
}
"""Of any other simulator, whose contract has to be given."""
