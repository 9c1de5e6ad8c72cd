"""What is measured, without measuring."""

from __future__ import annotations

import itertools
import multiprocessing
import sys

import numpy as np
import pytest

from diffusion_policy_ros.bench import speed
from diffusion_policy_ros.bench.verdict import EXACT, Timing
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.engine import ENGINES
from diffusion_policy_ros.errors import UserError


@pytest.mark.parametrize(("seen", "replan"), [(2, 1), (2, 4), (4, 1), (4, 3), (1, 1)])
def test_windows_slide_as_on_the_robot(seen, replan):
    """From one chunk to the next there are as many new frames as on the robot, no more."""
    contract = Contract.load("mini_lift")
    before, after = itertools.islice(speed.windows(contract, seen, replan), 2)
    kept = max(0, seen - replan)
    for key, stream in contract.observations.items():
        assert before[key].shape == (seen, *stream.shape)
        assert before[key].dtype == (np.uint8 if stream.is_image else np.float32)
        np.testing.assert_array_equal(after[key][:kept], before[key][seen - kept :])
        for frame in after[key][kept:]:
            assert not any(np.array_equal(frame, old) for old in before[key])


def test_a_chunk_falls_into_what_it_takes_once_and_each_step():
    """12 ms and 3 ms a step are found again; a single number of steps cannot tell."""
    made = [Timing("eager", "f32", "ddim", k, 10, 12 + 3 * k, 70, 90) for k in (1, 2, 8)]
    assert speed.parts(made) == pytest.approx((12, 3))
    assert speed.parts(made[:1]) is None


def test_a_process_that_dies_is_a_users_error():
    """Killed for its memory, it does not leave the one who waits for it."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    theirs.close()
    with pytest.raises(UserError, match="engine eager: its process ended; check the memory"):
        speed._listen(ours, "eager", print)


def test_an_engine_that_is_not_installed_is_named_with_the_cure(monkeypatch):
    """As on a machine without the extra."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("openvino", "compiled"):
        monkeypatch.delitem(sys.modules, f"diffusion_policy_ros.engine.{name}", raising=False)
    with pytest.raises(UserError, match="openvino is not installed; pip install openvino"):
        speed.precisions("openvino")
    assert speed.precisions("eager") == ["f32"]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_precision_of_an_engine_has_its_rank(engine):
    """The most exact stands first; one that cannot compute here says why."""
    try:
        found = speed.precisions(engine)
    except UserError as error:
        assert error.cure
    else:
        assert found[0] == "f32" and set(found) <= set(EXACT)
