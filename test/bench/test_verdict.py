"""Which setting fits which rate."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, strategies as st

from diffusion_policy_ros.bench.verdict import Demand, Timing, best, verdict

TIMINGS = st.lists(
    st.builds(
        Timing,
        engine=st.sampled_from(["eager", "openvino"]),
        dtype=st.sampled_from(["f32", "bf16", "int8"]),
        sampler=st.sampled_from(["ddim", "ddpm"]),
        steps=st.integers(1, 100),
        chunks=st.just(100),
        min_ms=st.just(0.1),
        p50_ms=st.just(0.1),
        p99_ms=st.floats(0.1, 2000),
    ),
    min_size=1,
)
DEMANDS = st.builds(
    Demand,
    rate_hz=st.floats(0.5, 200),
    replan_steps=st.integers(1, 8),
    n_action_steps=st.just(8),
    sampler=st.just("ddim"),
    steps=st.just(8),
)


def timing(p99_ms, steps=8, engine="openvino", dtype="f32", sampler="ddim"):
    """A setting that takes so long."""
    return Timing(engine, dtype, sampler, steps, 100, p99_ms / 3, p99_ms / 2, p99_ms)


@given(TIMINGS, DEMANDS)
def test_the_setting_that_is_named_holds_the_rate(timings, demand):
    """A yes names a setting whose p99 fits; a no is said only when none does."""
    chosen, fits = best(timings, demand), [t for t in timings if demand.holds(t)]
    assert (chosen is None) == (not fits)
    assert chosen is None or chosen in fits
    said = verdict(timings, demand)
    assert (": yes, with " in said) == bool(fits) and (": no; " in said) == (not fits)


@given(TIMINGS, DEMANDS, st.floats(1, 10))
def test_what_holds_a_rate_holds_every_lower_one(timings, demand, factor):
    """And the highest rate of a setting is the border between yes and no."""
    slower = dataclasses.replace(demand, rate_hz=demand.rate_hz / factor)
    for setting in timings:
        assert demand.holds(setting) <= slower.holds(setting)
        if not demand.spare_frames:
            continue
        highest = demand.highest_rate(setting)
        assert dataclasses.replace(demand, rate_hz=highest * 0.999).holds(setting)
        assert not dataclasses.replace(demand, rate_hz=highest * 1.001).holds(setting)


@given(TIMINGS, DEMANDS)
def test_the_fewest_frames_hold_and_fewer_do_not(timings, demand):
    """Where no number of frames within a chunk does, none is named."""
    for setting in timings:
        holding = [
            frames
            for frames in range(1, demand.n_action_steps + 1)
            if setting.p99_ms <= 1e3 * min(frames, 8 - frames) / demand.rate_hz
        ]
        assert demand.fewest_frames(setting) == (min(holding) if holding else None)


def test_the_nearest_to_the_policys_own_way_is_taken():
    """Its own K before a quicker one, exact before rounded, more of the work before less."""
    demand = Demand(20, 4, 8, "ddim", 8)
    own, rounded = timing(150), timing(50, dtype="int8")
    fewer, fewest, more = timing(20, 4), timing(10, 1), timing(100, 10)
    other = timing(5, sampler="ddpm")
    assert best([fewest, rounded, own, fewer, more, other], demand) == own
    assert best([fewest, rounded, fewer, more, other], demand) == rounded
    assert best([fewest, fewer, more, other], demand) == fewer
    assert best([fewest, more, other], demand) == fewest
    assert best([more, other], demand) == more
    assert best([timing(150), timing(140, engine="eager")], demand).engine == "eager"


def test_the_verdict_says_what_a_user_asks():
    """Rate, frames, setting and figures on one line; where it fails, what would hold."""
    demand = Demand(20, 4, 8, "ddim", 8)
    assert verdict([timing(150, dtype="int8")], demand) == (
        "20 Hz with a new chunk every 4 frames: yes, with openvino int8, ddim, K=8 "
        "(p99 150.0 of 200.0 ms)"
    )
    assert verdict([timing(250), timing(900)], demand) == (
        "20 Hz with a new chunk every 4 frames: no; the quickest, openvino f32, ddim, K=8, "
        "takes 250.0 of 200.0 ms (p99) and holds 16 Hz"
    )
    assert verdict([timing(900)], demand).endswith("and holds 4.4 Hz")
    assert "every frame: yes" in verdict([timing(1)], dataclasses.replace(demand, replan_steps=1))


@pytest.mark.parametrize(("replan", "holds"), [(8, False), (7, True), (4, True), (1, True)])
def test_a_chunk_that_is_used_up_before_the_next_is_a_no(replan, holds):
    """30 ms of computing at 20 Hz: one frame to spare is enough, none is not."""
    demand = Demand(20, replan, 8, "ddim", 8)
    assert demand.holds(timing(30)) == holds
    said = verdict([timing(30)], demand)
    assert holds or said.endswith("takes 30.0 of 0.0 ms (p99) and holds a new chunk every frame")
