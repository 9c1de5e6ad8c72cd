"""Normalisation: ranges, round trips, constants, statistics that do not fit."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.normalizer import (
    CONSTANT,
    RANGES,
    KeyNormalizer,
    NormalizationSettings,
    Normalizer,
    module_name,
)

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


def described(data):
    """Statistics of data (N, D), as a dataset gives them."""
    return {
        "min": data.min(0),
        "max": data.max(0),
        "mean": data.mean(0),
        "std": data.std(0),
        "quantiles": np.quantile(data, [0.01, 0.5, 0.99], axis=0),
    }


@pytest.fixture
def data():
    """A thousand positions: spread wide, hardly, and not at all."""
    random = np.random.default_rng(0)
    return random.normal(size=(1000, 3)) * [5.0, 0.01, 0.0] + [1.0, 2.0, 3.0]


def position_by(kind, contract, statistics, data):
    """The normaliser of positions of one kind, fitted to data."""
    settings = NormalizationSettings(keys={"position": kind})
    normalizer = Normalizer(contract, settings)
    normalizer.fit({**statistics, "position": described(data)})
    return normalizer["position"]


def test_gaussian_gives_mean_zero_and_deviation_one(contract, statistics, data):
    """Where the data moves; what does not is only centred."""
    single = position_by("gaussian", contract, statistics, data)
    out = single.normalize(torch.from_numpy(data).float())
    torch.testing.assert_close(out.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    expected = torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(out.std(0, correction=0), expected, rtol=0, atol=1e-3)


def test_quantiles_give_the_middle_98_percent_the_range(contract, statistics, data):
    """The 1st and 99th percentile become -1 and 1, however far outliers lie."""
    data[0] = 1000.0
    single = position_by("quantiles", contract, statistics, data)
    ends = torch.from_numpy(np.quantile(data, [0.01, 0.99], axis=0)).float()
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(single.normalize(ends)[:, :2], expected, rtol=0, atol=1e-3)


def test_identity_leaves_numbers_as_they_are(contract, statistics, data):
    """But for those that never moved, which are centred like all constants."""
    single = position_by("identity", contract, statistics, data)
    value = torch.from_numpy(data).float()
    assert torch.equal(single.normalize(value)[:, :2], value[:, :2])
    assert torch.equal(single.normalize(value)[:, 2], torch.zeros(1000))


@pytest.mark.parametrize("kind", RANGES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns)
def test_every_kind_comes_back_and_amplifies_no_constant(contract, statistics, kind, data):
    """Whatever the data: finite, invertible where it moves, and not scaled where it does not."""
    single = position_by(kind, contract, statistics, data.astype(np.float64))
    value = torch.from_numpy(data)
    normalised, moving = single.normalize(value), single.spread > 0
    assert normalised.isfinite().all()
    size = 1 + float(np.abs(data).max())
    torch.testing.assert_close(
        single.unnormalize(normalised)[:, moving], value[:, moving], rtol=0, atol=1e-5 * size
    )
    assert (single.normalize(value + 1)[:, ~moving].abs() < 1.01 + 1e-5 * size).all()


@pytest.mark.parametrize("kind", ["quantiles", "gaussian"])
def test_a_moment_of_motion_is_not_blown_up(kind, contract, statistics):
    """A gripper that closed once in 10,000 frames: its percentiles coincide, its range counts."""
    data = np.zeros((10_000, 3))
    data[7] = [1.0, 2e-3, 0.5]
    single = position_by(kind, contract, statistics, data)
    assert float(single.normalize(torch.from_numpy(data).float()).abs().max()) < 150
    if kind == "quantiles":
        torch.testing.assert_close(single.spread, torch.tensor([0.5, 1e-3, 0.25]))


def test_kinds_go_by_the_kind_of_key(contract, statistics, data):
    """Vectors, orientations and actions each have their setting, and single ones an exception."""
    how = {"vectors": "gaussian", "actions": "quantiles", "fields": {"grip": "identity"}}
    for key in ("position", "turn", "action"):
        size = len(statistics[key]["min"])
        middle = np.linspace(-0.9, 0.9, 3)[:, None] * np.ones(size)
        extra = {"mean": np.full(size, 0.25), "std": np.full(size, 0.5), "quantiles": middle}
        statistics[key].update(extra)
    normalizer = Normalizer(contract, NormalizationSettings(**how))
    normalizer.fit(statistics)
    assert normalizer["position"].spread.tolist() == [0.5] * 3
    assert normalizer["turn"].spread.tolist() == [1.0] * 4
    action = normalizer["action"].spread
    torch.testing.assert_close(action, torch.tensor([0.9, 0.9, 0.0, *[1.0] * 5]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"keys": {"positon": "limits"}}, "keys: the contract has no 'positon'; did you mean"),
        ({"keys": {"camera": "limits"}}, "the contract has no 'camera'"),
        ({"fields": {"gripper": "limits"}}, "fields: the contract has no 'gripper'"),
    ],
)
def test_an_exception_for_what_is_not_there_is_refused(contract, how, message):
    """By its name; images are no vectors."""
    with pytest.raises(UserError, match=message):
        Normalizer(contract, NormalizationSettings(**how))


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("gaussian", lambda s: s.pop("std"), "no std of 'position'"),
        ("quantiles", lambda s: s.pop("quantiles"), "no quantiles of 'position'"),
        ("quantiles", lambda s: s.update(quantiles=np.zeros(3)), r"'position' has \(3,\)"),
        ("gaussian", lambda s: s.update(mean=np.full(3, np.inf)), "'position' is not finite"),
    ],
)
def test_each_kind_refuses_statistics_that_it_misses(
    contract, statistics, data, kind, damage, message
):
    """By the names of key and number."""
    statistics["position"] = described(data)
    damage(statistics["position"])
    normalizer = Normalizer(contract, NormalizationSettings(keys={"position": kind}))
    with pytest.raises(UserError, match=message):
        normalizer.fit(statistics)


def test_actions_that_could_not_be_sampled_are_refused(contract, statistics):
    """Clipping samples at 1 would cut off what the data has beyond; the cure is named."""
    statistics["action"]["max"][0] = 7.0
    settings = NormalizationSettings(actions="identity")
    Normalizer(contract, settings).fit(statistics)
    Normalizer(contract, settings, 10.0).fit(statistics)
    with pytest.raises(UserError, match=r"action\[0:3\]: .* reaches 7, samples end at 1"):
        Normalizer(contract, settings, 1.0).fit(statistics)
