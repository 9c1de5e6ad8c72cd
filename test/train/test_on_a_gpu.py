"""Training where there is a GPU: the same batches and nearly the same weights as on the CPU."""

import numpy as np
import pytest
import torch

from diffusion_policy_ros.data.loader import prefetch
from diffusion_policy_ros.engine.cuda_graph import allow_tf32
from diffusion_policy_ros.train.batches import open_data, upload
from diffusion_policy_ros.train.distributed import Peers
from diffusion_policy_ros.train.learner import Learner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_what_is_uploaded_beside_is_what_was_read():
    """From pinned memory, by readers of their own, while the GPU computes."""
    random = np.random.default_rng(0)
    read = [random.integers(0, 256, (64, 84, 84, 3), dtype=np.uint8) for _ in range(10)]
    busy = torch.randn(2048, 2048, device="cuda")

    def prepare(number):
        return upload({"image": read[number % 10]}, torch.device("cuda"))

    with prefetch(prepare, 0, readers=2) as batches:
        sums = []
        for number in range(10):
            batch = next(batches)
            busy = (busy @ busy).tanh()
            sums.append(batch["image"].long().sum())
            assert batch["image"].is_cuda, number
    assert [int(total) for total in sums] == [int(images.sum()) for images in read]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_a_gpu_learns_what_a_cpu_learns(dataset, changed, precision, tolerance):
    """The losses of some updates, in mixed precision roughly."""
    allow_tf32(False)
    losses = [train(dataset, changed(precision=precision), device) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*losses, rtol=tolerance)


def train(dataset, recipe, device):
    """Losses of five updates."""
    data = open_data(dataset, recipe)
    learner = Learner(recipe, data, Peers(torch.device(device)))
    with data.batches(recipe.training, 0, learner.group) as batches:
        return [float(learner.learn(next(batches))) for _ in range(5)]
