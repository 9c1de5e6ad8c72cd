"""A goal image: a picture that is published once, and told the policy with every frame."""

import numpy as np
import pytest
import torch
from made_bags import MS, START, TEXT, demonstration, image, write_bag

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.bags import open_bag
from diffusion_policy_ros.data.convert import Options, convert
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.observe.history import Frame, History
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.recipe import Recipe

GOAL = "  goal: {topic: /goal, type: sensor_msgs/msg/Image, shape: [4, 6, 3], static: true}\n"
CONTRACT = Contract.from_text(TEXT.replace("  position:", GOAL + "  position:"))
PICTURES = [np.full((4, 6, 3), 40 + 60 * i, np.uint8) for i in range(2)]


def with_goal(picture, **how):
    """A demonstration before which the goal was shown once, much earlier."""
    then = START - 900 * MS
    yield "/goal", then + MS, image(then, picture)
    yield from demonstration(**how)


@pytest.fixture
def bags(tmp_path):
    """Two demonstrations, each with its own goal."""
    return [
        write_bag(tmp_path / f"bag_{i}", with_goal(picture, seed=i), CONTRACT)
        for i, picture in enumerate(PICTURES)
    ]


@pytest.mark.parametrize("images", ["raw", "png"])
def test_every_frame_has_its_demonstrations_goal(bags, tmp_path, images):
    """As its pictures were, however they are kept."""
    convert(bags, CONTRACT, tmp_path / "data", options=Options(images=images))
    dataset = Dataset(tmp_path / "data")
    for number, picture in enumerate(PICTURES):
        goals = dataset.episode(number)["goal"]
        assert len(goals) > 8 and (goals == picture).all()


def test_the_same_live(bags):
    """Also after a reset; a new picture takes the old one's place."""
    history, seen = History(CONTRACT, 1), []
    for bag in bags:
        for topic, arrival, msg in open_bag(bag).messages(CONTRACT.topics):
            seen += history.push(topic, msg, arrival)
        history.reset()
    goals = [event.arrays["goal"] for event in seen if isinstance(event, Frame)]
    assert (goals[0] == PICTURES[0]).all() and (goals[-1] == PICTURES[1]).all()


def test_another_goal_is_another_chunk():
    """The policy sees it, beside what the robot's camera shows."""
    changes = {
        "policy.image_encoder": "{name: small_conv, keypoints: 4, resize: [24, 24], crop: 1.0}"
    }
    torch.manual_seed(0)
    policy = DiffusionPolicy(Recipe.load("small_state", changes), CONTRACT).eval()
    noise = torch.randn(1, 16, 7)

    def chunk(goal):
        shown = {
            key: torch.ones(1, 2, *stream.shape, dtype=torch.uint8 if stream.is_image else None)
            for key, stream in CONTRACT.observations.items()
        }
        return policy.sample(
            shown | {"goal": torch.tensor(goal).expand(1, 2, -1, -1, -1)}, noise=noise
        )

    assert not torch.allclose(*map(chunk, PICTURES))
