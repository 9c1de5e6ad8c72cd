"""Dropout's masks belong to windows, however a batch is cut."""

import pytest
import torch
from torch import nn

from diffusion_policy_ros.policy.denoisers.dropout import (
    Dropout,
    DropoutDraws,
    masks_of,
    with_masks_of_windows,
)


def under(network, draws, *given):
    """What a network makes of them with these masks."""
    with masks_of(draws, torch.device("cpu")):
        return network(*given)


def test_parts_have_the_masks_of_the_whole():
    """Two rows a window; the parts are those of the batch, and no two windows are alike."""
    network, ones = Dropout(0.5).train(), torch.ones(12, 40)
    draws = DropoutDraws(3, 0, 6, 6)
    whole = under(network, draws, ones)
    parts = [
        under(network, draws.part(slice(a, b)), ones[2 * a : 2 * b]) for a, b in ((0, 1), (1, 6))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert len(torch.unique(whole, dim=0)) == 12
    assert set(whole.unique().tolist()) == {0.0, 2.0}
    assert float((whole == 0).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_no_global_generator_moves():
    """Draws of its own: nothing outside is disturbed, and nothing outside disturbs it."""
    before = torch.random.get_rng_state()
    draws, ones = DropoutDraws(3, 0, 4, 4), torch.ones(4, 8)
    found = under(Dropout(0.5).train(), draws, ones)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(under(Dropout(0.5).train(), draws, ones), found)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_dropped_weights_is_torch_s(masked):
    """A share so small that nothing is dropped: the same numbers and gradients."""
    torch.manual_seed(0)
    plain = nn.TransformerDecoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=True)
    torch.manual_seed(0)
    ours = nn.TransformerDecoderLayer(16, 4, 32, 1e-9, batch_first=True, norm_first=True)
    with_masks_of_windows(ours)
    hidden, memory = torch.randn(3, 5, 16), torch.randn(3, 4, 16)
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    given = (hidden, memory, mask if masked else None)
    out = under(ours.train(), DropoutDraws(0, 0, 3, 3), *given)
    torch.testing.assert_close(out, plain.train()(*given))
    assert dict(ours.state_dict()).keys() == plain.state_dict().keys()
