"""A private DDS domain, an untrained policy, and a robot that can be made to misbehave."""

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from live import live  # noqa: E402
from nodes import CONTRACT, TINY, Policy, Robot  # noqa: E402

from diffusion_policy_ros.policy.checkpoint import save_checkpoint  # noqa: E402
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy  # noqa: E402
from diffusion_policy_ros.policy.recipe import Recipe  # noqa: E402


@pytest.fixture
def domain(tmp_path):
    """A private DDS domain with processes in it, see live.py."""
    with live(tmp_path) as domain:
        yield domain


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny untrained policy for the simulated arm with two cameras."""
    folder = tmp_path_factory.mktemp("policies") / "tiny"
    return save_checkpoint(folder, DiffusionPolicy(Recipe.from_text(TINY), CONTRACT))


@pytest.fixture
def robot(domain):
    """Publishes what the simulated arm publishes, at 20 Hz."""
    return Robot(domain)


@pytest.fixture
def policy(domain, checkpoint):
    """The policy node, on its way to active in a process of its own."""
    return Policy(domain, checkpoint)
