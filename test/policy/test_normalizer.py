"""Normalisation: ranges, round trips, constants, statistics that do not fit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.normalizer import CONSTANT, KeyNormalizer, Normalizer, module_name

bounded = st.floats(-1e3, 1e3, width=32)
columns = arrays(np.float32, (9, 3), elements=bounded)


@pytest.fixture
def normalizer(contract, statistics):
    """Fitted to the small robot's statistics."""
    fitted = Normalizer(contract)
    fitted.fit(statistics)
    return fitted


def fitted_to(data):
    """One key's normaliser, fitted to the range of data (N, D)."""
    single = KeyNormalizer(data.shape[1])
    low, high = data.min(0).astype(np.float64), data.max(0).astype(np.float64)
    single.fit(low, high)
    return single


@settings(deadline=None)
@given(columns)
def test_data_goes_to_its_own_range_and_back(data):
    """Everything lies in [-1, 1], reaches both ends where it moves, and comes back."""
    single, value = fitted_to(data), torch.from_numpy(data)
    normalised = single.normalize(value)
    moving, size = single.spread > 0, float(np.abs(data).max())
    assert normalised[:, moving].abs().sum() == 0 or normalised[:, moving].abs().max() < 1.25
    still = max(CONSTANT, 1.1e-6 * size)
    torch.testing.assert_close(single.unnormalize(normalised), value, rtol=0, atol=still)
    assert (normalised[:, ~moving].abs() <= still).all()


@settings(deadline=None)
@given(bounded, st.floats(0, 0.5))
def test_constants_are_never_amplified(level, ripple):
    """A dimension that hardly moved is only shifted later on; as an action it stays."""
    data = np.array([[level], [np.float32(level + ripple * CONSTANT)]], dtype=np.float32)
    single = fitted_to(data)
    later = float(single.normalize(torch.tensor([[level + 1.0]])))
    assert later == pytest.approx(1.0, abs=1e-3)
    assert float(single.unnormalize(torch.tensor([[0.7]]))) == pytest.approx(level, abs=1e-3)


def test_ranges_become_minus_one_to_one(normalizer):
    """By hand: position 0..1, 0..2, 0..4."""
    value = torch.tensor([[0.0, 1.0, 3.0], [1.0, 2.0, 0.0]])
    expected = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 1.0, -1.0]])
    torch.testing.assert_close(normalizer["position"].normalize(value), expected)


def test_quaternions_stay_on_the_unit_sphere(contract, statistics):
    """No orientation is scaled, observed or commanded, whatever its range in the data."""
    statistics["turn"] = {"min": np.full(4, -0.3), "max": np.full(4, 0.2)}
    for name, value in (("min", -0.25), ("max", 0.5)):
        statistics["action"][name][3:7] = value
    normalizer = Normalizer(contract)
    normalizer.fit(statistics)
    quaternion = torch.tensor([[0.5, -0.5, 0.5, 0.5]])
    torch.testing.assert_close(normalizer["turn"].normalize(quaternion), quaternion)
    action = torch.zeros(1, 8)
    action[:, 3:7] = quaternion
    torch.testing.assert_close(normalizer["action"].normalize(action)[:, 3:7], quaternion)


def test_an_action_that_no_demonstration_moved_stays(normalizer):
    """Whatever the network says, the third component is the constant of the data."""
    out = normalizer["action"].unnormalize(torch.full((1, 8), 0.9))
    assert float(out[0, 2]) == 0.5


def test_warnings_name_what_never_or_hardly_moved(contract, statistics):
    """Key and dimension, and what it means."""
    statistics["position"]["max"] = np.array([1.0, 0.0, 5e-4])
    normalizer = Normalizer(contract)
    normalizer.fit(statistics)
    warnings = list(normalizer.warnings())
    assert "position[1] is constant in the data and tells nothing" in warnings
    assert any(w.startswith("position[2] moves by less than 0.001") for w in warnings)
    assert "action[2] is constant in the data and will never be commanded to move" in warnings


def test_statistics_are_part_of_the_weights(normalizer, contract):
    """A fresh normaliser that loads them is the same."""
    other = Normalizer(contract)
    other.load_state_dict(normalizer.state_dict(), strict=True)
    value = torch.randn(2, 3)
    assert torch.equal(other["position"].normalize(value), normalizer["position"].normalize(value))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("position"), "no min of 'position'"),
        (lambda s: s["turn"].pop("max"), "no max of 'turn'"),
        (lambda s: s["action"].update(min=np.zeros(7)), "'action' has"),
        (lambda s: s["position"].update(max=np.full(3, np.nan)), "not finite"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_by_name(contract, statistics, damage, message):
    """Nothing is left at a default."""
    damage(statistics)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        Normalizer(contract).fit(statistics)


@pytest.mark.parametrize("key", ["arm.left.pose", "type", "keys", "training", "robot0_eef_pos"])
def test_any_key_of_a_contract_can_be_a_module(key):
    """Dots and names that torch keeps for itself are written differently."""
    modules = torch.nn.ModuleDict({module_name(key): torch.nn.Identity()})
    assert module_name(key) in modules
