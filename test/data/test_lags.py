"""How much later one thing moves as another one did."""

import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from diffusion_policy_ros.data.lags import Track, lag_between

PERIOD_S = 0.05


def motion(seed, fastest_hz=1.5, size=3):
    """A smooth motion without a period: t (n,) → (n, size)."""
    rng = np.random.default_rng(seed)
    hertz = rng.uniform(0.1, fastest_hz, (20, size))
    phase = rng.uniform(0, 2 * np.pi, (20, size))
    height = rng.normal(size=(20, size)) / hertz

    def at(t):
        return (height * np.sin(2 * np.pi * hertz * t[:, None, None] + phase)).sum(1) * 0.01

    return at


def times(seed, seconds, rate_hz):
    """Jittered, with a phase of its own."""
    rng = np.random.default_rng(seed)
    even = np.arange(0, seconds, 1 / rate_hz)
    return even + rng.uniform(0, 1 / rate_hz) + rng.uniform(0, 0.2 / rate_hz, len(even))


@settings(max_examples=30, deadline=None)
@given(
    delay_s=st.floats(-0.1, 0.5),
    rate_hz=st.sampled_from([20, 30, 100]),
    seed=st.integers(0, 10**6),
)
def test_a_known_delay_is_found_within_a_third_of_a_frame(delay_s, rate_hz, seed):
    """Whatever the rate of the measurement and its phase, with a millimetre of noise."""
    where = motion(seed)
    told_s, seen_s = times(seed + 1, 15, 20), times(seed + 2, 15, rate_hz)
    noise = np.random.default_rng(seed).normal(size=(len(seen_s), 3)) * 1e-3
    told = Track(told_s, where(told_s))
    seen = Track(seen_s, where(seen_s - delay_s) + noise)
    # Along a path, a millimetre a hundred times a second adds up.
    for first, second, alike in ((told, seen, 0.95), (told.path(), seen.path(), 0.6)):
        lag = lag_between(first, second, PERIOD_S)
        assert lag.seconds == pytest.approx(delay_s, abs=PERIOD_S / 3), lag.why
        assert lag.correlation > alike


def test_a_jump_is_followed_from_when_it_is_told():
    """A gripper's command jumps; the fingers take 100 ms, half of which counts."""
    jumps_s = np.array([1.0, 2.7, 5.2, 6.1, 8.0])
    told_s, seen_s = np.arange(0, 10, 0.05), np.arange(0, 10, 0.01)
    told = Track(told_s, np.searchsorted(jumps_s, told_s, "right")[:, None] * 1.0, holds=True)
    closing = np.clip((seen_s[:, None] - jumps_s - 0.08) / 0.1, 0, 1).sum(axis=1)
    lag = lag_between(told, Track(seen_s, closing[:, None]), PERIOD_S)
    assert lag.seconds == pytest.approx(0.08 + 0.05, abs=PERIOD_S / 3)


def test_over_gaps_nothing_is_said_of_the_motion():
    """Two episodes in one recording: the arm is elsewhere after the pause."""
    where, t = motion(1), np.concatenate([np.arange(0, 8, 0.05), np.arange(9, 17, 0.05)])
    moved = np.where(t > 8.5, 5.0, 0.0)[:, None]
    lag = lag_between(Track(t, where(t)), Track(t, where(t - 0.12) + moved), PERIOD_S)
    assert lag.seconds == pytest.approx(0.12, abs=PERIOD_S / 3)


@pytest.mark.parametrize(
    "first, second, why",
    [
        (np.zeros, motion(0), "too little moves"),
        (motion(0), motion(1), "do not agree|not within"),
        (motion(0), lambda t: motion(0)(t - 0.9), "do not agree|not within"),
    ],
    ids=["still", "unrelated", "too late"],
)
def test_what_cannot_be_told_is_unknown_with_the_reason(first, second, why):
    """The arm did not move, moved otherwise, or later than is tried."""
    t = np.arange(0, 20, 0.05)
    still = np.zeros((len(t), 3))
    lag = lag_between(
        Track(t, still if first is np.zeros else first(t)), Track(t, second(t)), 0.05
    )
    assert lag.seconds is None
    assert re.search(why, lag.why)


@pytest.mark.parametrize("messages", [0, 1, 2, 30])
def test_short_recordings_are_unknown(messages):
    """None of them raises."""
    t = np.arange(messages) * 0.05
    track = Track(t, np.zeros((messages, 2)))
    assert lag_between(track, track, PERIOD_S).seconds is None
    assert lag_between(track.path(), track.path(), PERIOD_S).seconds is None
