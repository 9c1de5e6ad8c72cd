"""Shifts of light, camera and texture change what is seen, and nothing else."""

import numpy as np
import pytest
import shifts

from diffusion_policy_ros.policy.recipe import Recipe
from diffusion_policy_ros.sim.arm import IMAGE_CAMERAS, SimArm

SEED = shifts.FIRST_REPORTED_SEED


def seen(name):
    """The first observation of an episode."""
    with SimArm() as arm:
        shifts.SHIFTS[name](arm.model)
        return arm.reset(SEED)


@pytest.fixture(scope="module")
def usual():
    """As it was recorded."""
    return seen("none")


@pytest.mark.parametrize("name", [name for name in shifts.SHIFTS if name != "none"])
def test_a_shift_is_seen_and_changes_nothing_else(name, usual):
    """By the fixed camera much more than rounding; states are the same bits."""
    found = seen(name)
    for key in found.keys() - IMAGE_CAMERAS.keys():
        assert np.array_equal(found[key], usual[key])
    apart = np.abs(found["agentview_image"].astype(int) - usual["agentview_image"])
    assert apart.mean() > 5


def test_the_table_has_a_line_a_shift_with_intervals():
    """Of all training seeds together."""
    row = {"recipe": "plain", "shift": "dim", "episodes": 100}
    rows = [row | {"successes": 90}, row | {"successes": 70}]
    lines = shifts.table(rows).splitlines()
    assert len(lines) == 2 + len(shifts.SHIFTS)
    assert "| dim | 160 of 200 (74% to 85%) |" in lines[3]


def test_its_recipes_are_the_demos():
    """One as it is; the other differs in what varies in training alone."""
    plain, varied = (Recipe.load(shifts.NAME, changes) for changes in shifts.RECIPES.values())
    assert plain == Recipe.load(shifts.NAME)
    augment = varied.policy.image_encoder.augment
    assert augment.colours and augment.moves
    assert plain.training == varied.training
