"""Convolutions by gathered taps are the usual convolutions."""

import pytest
import torch
from torch import nn

from diffusion_policy_ros.policy import convolutions


def forward_and_gradients(conv, value):
    """The output, and the gradients of a weighted sum of it."""
    value = value.clone().requires_grad_()
    out = conv(value)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out.contiguous())
    return [out, *torch.autograd.grad((out * weights).sum(), [value, *conv.parameters()])]


def taken(monkeypatch):
    """Which of the tap products run from now on."""
    calls = []
    for name in ("_taps_1d", "_taps_2d"):
        function = getattr(convolutions, name)

        def counting(*args, function=function):
            calls.append(function)
            return function(*args)

        monkeypatch.setattr(convolutions, name, counting)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "length"), [(1, 3), (3, 4), (5, 4), (5, 2)])
def test_one_dimension_is_torch_s(monkeypatch, kernel, length, bias):
    """Outputs and all gradients, to rounding."""
    calls = taken(monkeypatch)
    conv = convolutions.Conv1d(6, 24, kernel, padding=kernel // 2, bias=bias)
    other = nn.Conv1d(6, 24, kernel, padding=kernel // 2, bias=bias)
    other.load_state_dict(conv.state_dict())
    sample = torch.randn(3, 6, length, generator=torch.Generator().manual_seed(0))
    ours, theirs = forward_and_gradients(conv, sample), forward_and_gradients(other, sample)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 1, (3, 3)), (3, 2, (5, 5)), (3, 2, (4, 3)), (1, 2, (5, 4))]
)
def test_two_dimensions_are_torch_s(monkeypatch, kernel, stride, size, layout):
    """Outputs and all gradients, to rounding, in both layouts."""
    calls = taken(monkeypatch)
    conv = convolutions.Conv2d(5, 40, kernel, stride, padding=kernel // 2, bias=False)
    other = nn.Conv2d(5, 40, kernel, stride, padding=kernel // 2, bias=False)
    other.load_state_dict(conv.state_dict())
    conv.to(memory_format=layout)
    maps = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0))
    ours = forward_and_gradients(conv, maps.to(memory_format=layout))
    torch.testing.assert_close(ours, forward_and_gradients(other, maps), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


def test_the_usual_way_without_gradients_and_for_many_places(monkeypatch):
    """Inference keeps torch's own kernels bit for bit, and so do large maps."""
    calls = taken(monkeypatch)
    conv = convolutions.Conv1d(6, 8, 3, padding=1)
    sample = torch.randn(1, 6, 4)
    with torch.inference_mode():
        assert torch.equal(conv(sample), nn.Conv1d.forward(conv, sample))
    conv(torch.randn(2, 6, 16))
    with torch.autocast("cpu", torch.bfloat16):
        conv(sample)
    assert not calls
