"""A replay asks a policy of several tasks for the one that each recording is of."""

from types import SimpleNamespace

import pytest

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.replay.policy import Policy
from diffusion_policy_ros.runtime.sampling import Sampling


def made(tasks, task=None, given=()):
    """A policy of these tasks, asked for one of them."""
    recipe = Recipe.from_text(f"policy: {{tasks: {list(tasks)}}}")
    engine = SimpleNamespace(policy=SimpleNamespace(recipe=recipe))
    return Policy(engine, Sampling.of(recipe.policy, task=task), given=frozenset(given))


def test_each_recording_is_replayed_as_its_own_task():
    """One that was not trained, and none where there are several, are refused with its name."""
    policy = made(["pick", "place"], "pick")
    assert policy.for_task("place", "bag").sampling.task == "place"
    with pytest.raises(
        UserError, match="bag7: no task 'plaice' was trained; did you mean 'place'"
    ):
        policy.for_task("plaice", "bag7")
    with pytest.raises(UserError, match="bag7: no task is said"):
        policy.for_task("", "bag7")


def test_what_the_user_asks_for_counts_and_no_tasks_are_no_matter():
    """Nor does the only task need to be noted."""
    asked = made(["pick", "place"], "pick", {"task"})
    assert asked.for_task("place", "bag").sampling.task == "pick"
    assert made([]).for_task("anything", "bag").sampling.task == ""
    assert made(["pick"]).for_task("", "bag").sampling.task == "pick"
