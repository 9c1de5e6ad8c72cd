"""A dataset of four short episodes on disk, and a recipe that trains on it in a second."""

import multiprocessing

import numpy as np
import pytest

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.data.dataset import Episode, Index
from diffusion_policy_ros.policy.recipe import Recipe

CONTRACT = """
name: tiny
rate_hz: 10
anchor: camera
observations:
  camera: {topic: /camera, type: sensor_msgs/msg/Image, shape: [20, 24, 3]}
  position: {topic: /pose, type: geometry_msgs/msg/PoseStamped, field: pose.position}
action:
  fields:
    - {name: move, kind: delta_position}
    - {name: grip, kind: binary}
  record: {topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [4]}
"""

RECIPE = """
name: tiny
policy:
  n_obs_steps: 2
  horizon: 8
  n_action_steps: 4
  num_train_timesteps: 20
  num_inference_steps: 2
  prediction_type: sample
  denoiser: {down_dims: [8, 16], kernel_size: 3, n_groups: 4, diffusion_step_embed_dim: 8}
  image_encoder: {name: small_conv, keypoints: 4, features: 0, crop: [16, 20]}
training:
  batch_size: 6
  noise_samples: 2
  updates: 12
  lr: 1.0e-3
  warmup_updates: 3
  val_every: 6
  checkpoint_every: 0
  log_every: 2
  threads: 1
"""

FRAMES = (10, 13, 7, 11)


def write_dataset(folder, frames=FRAMES, seed=0):
    """Episodes of a point that moves to the origin, with noise for images."""
    contract, random = Contract.from_text(CONTRACT), np.random.default_rng(seed)
    shard = folder / "shards" / "first"
    shard.mkdir(parents=True)
    total = sum(frames)
    position = random.uniform(-1, 1, (total, 3)).astype(np.float32)
    grip = np.sign(position[:, :1])
    arrays = {
        "camera": random.integers(0, 256, (total, 20, 24, 3), dtype=np.uint8),
        "position": position,
        "action": np.concatenate([-0.1 * position, grip], axis=1),
        "stamp_ns": np.arange(total, dtype=np.int64) * contract.period_ns,
    }
    for key, array in arrays.items():
        np.save(shard / f"{key}.npy", array)
    starts = np.cumsum([0, *frames[:-1]]).tolist()
    episodes = tuple(
        Episode(f"bag{i}", f"hash{i}-{seed}", "first", start, count)
        for i, (start, count) in enumerate(zip(starts, frames, strict=True))
    )
    Index(1, contract.text, contract.hash, {"first": total}, episodes).save(folder)
    return folder


@pytest.fixture
def dataset(tmp_path):
    """The dataset's folder."""
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def other_dataset(tmp_path):
    """Another one of the same robot."""
    return write_dataset(tmp_path / "other", seed=1)


@pytest.fixture
def recipe():
    """The small recipe."""
    return Recipe.from_text(RECIPE)


@pytest.fixture
def changed(recipe):
    """The small recipe with training settings changed."""
    return lambda **settings: Recipe.from_text(
        RECIPE, overrides={f"training.{key}": str(value) for key, value in settings.items()}
    )


TRANSFORMER = "{name: transformer, n_layer: 2, n_head: 2, n_emb: 16, p_drop_emb: 0.1}"


@pytest.fixture
def with_dropout(recipe):
    """The same with a Transformer, whose dropout is 0.3 and 0.1."""
    return lambda **settings: Recipe.from_text(
        RECIPE,
        overrides={"policy.denoiser": TRANSFORMER}
        | {f"training.{key}": str(value) for key, value in settings.items()},
    )


@pytest.fixture(scope="session")
def forked():
    """A class of processes that begin at once: forked from one that has imported the trainer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diffusion_policy_ros.cli.main", TRAINER, REPORT])
    return context.Process


TRAINER, REPORT = "diffusion_policy_ros.train.trainer", "diffusion_policy_ros.report.training"


@pytest.fixture
def make_dataset():
    """`write_dataset`, for other lengths and numbers."""
    return write_dataset
