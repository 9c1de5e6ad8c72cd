"""Which numbers of a sequence are given."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_policy_ros.policy.inpainting import MaskGenerator

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "official_inpainting_masks.npz")


@pytest.mark.parametrize("case", sorted({key.partition("/")[0] for key in GOLDEN.files}))
def test_masks_equal_the_reference_s(case):
    """Bit for bit."""
    config, expected = json.loads(str(GOLDEN[f"{case}/config"])), GOLDEN[f"{case}/mask"]
    mask = MaskGenerator(**config)(*expected.shape[:2])
    assert np.array_equal(mask.numpy(), expected)


def test_drawn_observed_steps_are_from_one_to_the_most():
    """Each count occurs; the generator decides; visible actions end before the newest frame."""
    masks = MaskGenerator(2, 3, max_n_obs_steps=4, fix_obs_steps=False, action_visible=True)
    mask = masks(200, 6, torch.Generator().manual_seed(0))
    seen, visible = mask[..., 2].sum(1), mask[..., 0].sum(1)
    assert set(seen.tolist()) == {1, 2, 3, 4}
    assert torch.equal(visible, seen - 1)
    assert torch.equal(mask, masks(200, 6, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="give a generator"):
        masks(200, 6)
