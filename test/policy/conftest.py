"""A small robot and a small recipe, for tests of the learning core."""

import numpy as np
import pytest

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.policy.recipe import Recipe

CONTRACT = """
name: tiny
rate_hz: 10
anchor: camera
observations:
  position: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
  camera: {topic: /camera, type: sensor_msgs/msg/Image, shape: [20, 24, 3]}
  turn: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.orientation}
action:
  fields:
    - {name: move, kind: delta_position}
    - {name: turn, kind: quaternion}
    - {name: grip, kind: binary}
  record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [8]}
"""

RECIPE = """
name: tiny
policy:
  n_obs_steps: 2
  horizon: 8
  n_action_steps: 4
  num_train_timesteps: 20
  num_inference_steps: 4
  prediction_type: sample
  denoiser: {down_dims: [16, 32], kernel_size: 3, n_groups: 4, diffusion_step_embed_dim: 16}
  image_encoder: {name: small_conv, keypoints: 4, features: 0, crop: [16, 20]}
training: {batch_size: 4, noise_samples: 2, lr: 1.0e-3, warmup_updates: 2}
"""


@pytest.fixture
def contract():
    """A robot with a camera, a pose and eight action components."""
    return Contract.from_text(CONTRACT)


@pytest.fixture
def recipe():
    """A recipe that trains in milliseconds."""
    return Recipe.from_text(RECIPE)


@pytest.fixture
def batch():
    """Five windows of that robot, observations and actions."""
    random = np.random.default_rng(0)
    return {
        "camera": random.integers(0, 256, (5, 2, 20, 24, 3), dtype=np.uint8),
        "position": random.normal(size=(5, 2, 3)).astype(np.float32),
        "turn": random.normal(size=(5, 2, 4)).astype(np.float32),
        "action": random.uniform(-1, 1, (5, 8, 8)).astype(np.float32),
        "action_is_pad": np.zeros((5, 8), dtype=bool),
    }


@pytest.fixture
def statistics():
    """Ranges of everything, the third action component never moving."""
    low = np.array([-0.1, -0.2, 0.5, -1, -1, -1, -1, -1], dtype=np.float32)
    high = np.array([0.1, 0.4, 0.5, 1, 1, 1, 1, 1], dtype=np.float32)
    return {
        "position": {"min": np.zeros(3), "max": np.array([1.0, 2.0, 4.0])},
        "turn": {"min": -np.ones(4), "max": np.ones(4)},
        "action": {"min": low, "max": high},
    }
