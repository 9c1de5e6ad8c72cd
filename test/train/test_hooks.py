"""What is measured every n updates, and which checkpoints are kept for it."""

import csv
import json

import pytest
from hypothesis import given, strategies as st

from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.policy.checkpoint import choice_lines, find_checkpoint, run_checkpoints
from diffusion_policy_ros.policy.recipe import TrainingSettings
from diffusion_policy_ros.policy.run import Ranking
from diffusion_policy_ros.report.training import training_lines
from diffusion_policy_ros.train.hooks import Hook
from diffusion_policy_ros.train.trainer import train

BY_SUCCESS = {
    "updates": 10,
    "val_every": 0,
    "eval_sim": "mini_lift",
    "metric": "success",
    "keep_best": 2,
    "keep_checkpoints": 1,
}


def successes(*rates):
    """A hook of every second update that finds these, and the policies that it saw."""
    left, seen = iter(rates), []

    def measure(policy):
        seen.append(policy)
        return (next(left),)

    return Hook(("success",), 2, measure), seen


def run_of(dataset, recipe, out, hook, **how):
    """Train with a hook; the names of the checkpoints that are left."""
    train(dataset, recipe, out, progress="none", say=len, hooks=[hook], **how)
    return [int(path.name.removeprefix("update_")) for path in run_checkpoints(out)]


def test_the_best_by_a_metric_are_kept_beside_the_newest(dataset, changed, tmp_path):
    """Two of them; the run's name means the first, which is said; the table has what was found."""
    hook, seen = successes(0.1, 0.9, 0.5, 0.7, 0.2)
    assert run_of(dataset, changed(**BY_SUCCESS), tmp_path / "run", hook) == [4, 8, 10]
    assert len(seen) == 5 and not any(policy.training for policy in seen)
    assert find_checkpoint(tmp_path / "run").name == "update_000004"
    (line,) = choice_lines(tmp_path / "run")
    assert "update_000004, the best by success; the newest is update_000010" in line
    assert any("update_000004, by success" in line for line in training_lines(tmp_path / "run"))
    with (tmp_path / "run" / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {int(row["update"]): row["success"] for row in rows if row["success"]}
    assert found == {2: "0.1", 4: "0.9", 6: "0.5", 8: "0.7", 10: "0.2"}
    card = (find_checkpoint(tmp_path / "run") / "card.md").read_text()
    assert "success 0.9000" in card


def test_what_was_best_is_known_after_an_interruption(dataset, changed, tmp_path):
    """The same checkpoints are kept as in one go; also by patience."""
    rates = (0.1, 0.9, 0.5, 0.7, 0.2)
    hook, _ = successes(*rates[:3])
    run_of(dataset, changed(**BY_SUCCESS), tmp_path / "run", hook, stop_after=7)
    hook, _ = successes(*rates[3:])
    again = run_of(dataset, changed(**BY_SUCCESS), tmp_path / "run", hook, resume=True)
    assert again == [4, 8, 10]
    hook, _ = successes(*rates)
    patient = changed(**{**BY_SUCCESS, "updates": 40, "early_stop": 2, "keep_best": 0})
    assert run_of(dataset, patient, tmp_path / "patient", hook) == [4, 8]


def test_hooks_come_in_turn_and_after_the_last_update(dataset, changed, tmp_path):
    """Beside validation, whose columns stay; every 0 is only the last."""
    calls = []
    hook = Hook(("one", "two"), 0, lambda policy: (calls.append(policy), 1.0)[1:] * 2)
    train(dataset, changed(updates=7), tmp_path / "run", progress="none", say=len, hooks=[hook])
    assert len(calls) == 1
    with (tmp_path / "run" / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "update", "loss", "val_loss", "val_action_error", "one", "two", "seconds",
    ]  # fmt: skip
    assert [row["update"] for row in rows if row["val_loss"]] == ["6", "7"]
    assert (rows[-1]["one"], rows[-1]["two"], rows[0]["one"]) == ("1", "1", "")


def test_hooks_come_after_the_update_that_patience_makes_the_last(dataset, changed, tmp_path):
    """`eval_every=0` is after the last update, whichever that is."""
    calls = []
    last = Hook(("last",), 0, lambda policy: (calls.append(policy), 1.0)[1:])
    patient = changed(**{**BY_SUCCESS, "updates": 40, "early_stop": 2, "val_every": 30})
    hooks = [last, successes(0.1, 0.9, 0.5, 0.7)[0]]
    train(dataset, patient, tmp_path / "run", progress="none", say=len, hooks=hooks)
    row = rows_of(tmp_path / "run")[-1]
    assert (row["update"], row["success"], row["last"]) == ("8", "0.7", "1") and len(calls) == 1
    assert row["val_loss"]


def test_what_was_measured_stays_where_it_is_measured_no_more(dataset, changed, tmp_path):
    """A run that is resumed without its simulator keeps the numbers in loss.csv."""
    run_of(dataset, changed(), tmp_path / "run", successes(0.1, 0.9)[0], stop_after=5)
    train(dataset, changed(), tmp_path / "run", progress="none", say=len, resume=True)
    rows = rows_of(tmp_path / "run")
    assert {row["update"]: row["success"] for row in rows if row["success"]} == {
        "2": "0.1", "4": "0.9",
    }  # fmt: skip
    assert rows[-1]["update"] == "12" and rows[-1]["val_loss"]


def test_the_best_of_what_is_there_are_kept_from_a_resuming_on(dataset, changed, tmp_path):
    """What was better before any was kept is gone, so that nothing was kept for good."""
    hook, _ = successes(0.9, 0.1, 0.5, 0.7, 0.2)
    careless = changed(**{**BY_SUCCESS, "keep_best": 0})
    assert run_of(dataset, careless, tmp_path / "run", hook, stop_after=5) == [5]
    careful = changed(**{**BY_SUCCESS, "keep_best": 1})
    assert run_of(dataset, careful, tmp_path / "run", hook, resume=True) == [8, 10]
    assert find_checkpoint(tmp_path / "run").name == "update_000008"


def rows_of(run):
    """Of its loss.csv."""
    with (run / "loss.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_metric_that_nothing_measures_is_refused(changed):
    """With the recipe, before anything is trained."""
    with pytest.raises(UserError, match="metric.*no simulator; name one in eval_sim"):
        changed(metric="success")
    with pytest.raises(UserError, match="keep_best.*no validation to judge by"):
        changed(keep_best=2, val_every=0)


@given(st.lists(st.floats(0, 1, width=16) | st.just(float("nan")), max_size=12), st.integers(1, 4))
def test_a_ranking_is_a_sorted_table(errors, keep):
    """Whatever comes: the smallest first, of equal ones the first; NaN is none."""
    ranking = Ranking(TrainingSettings(keep_best=keep))
    kept = [
        update for update, e in enumerate(errors) if ranking.note(update, {"val_action_error": e})
    ]
    table = sorted((e, update) for update, e in enumerate(errors) if e == e)
    assert ranking.kept == [update for _, update in table[:keep]]
    assert set(ranking.kept) <= set(kept)
    measured = [update for update, e in enumerate(errors) if e == e]
    assert ranking.stale == (len(measured) - 1 - measured.index(table[0][1]) if table else 0)


def test_what_older_checkpoints_noted_is_taken_over(dataset, changed, tmp_path):
    """The best action error and when it was; the run goes on by it."""
    recipe = changed(early_stop=3, val_every=2, updates=8, keep_checkpoints=0)
    checkpoint = train(dataset, recipe, tmp_path / "run", progress="none", say=len, stop_after=4)
    values = json.loads((checkpoint / "training_state.json").read_text())
    ranking = Ranking(recipe.training)
    ranking.restore(values)
    older = Ranking(recipe.training)
    (score, update), *_ = values["best"]
    older.restore(
        {"best_action_error": score, "best_update": update, "stale_validations": values["stale"]}
    )
    assert (older.best, older.stale) == (ranking.best, ranking.stale)
    ranking.restore({"best_action_error": None, "best_update": 0, "stale_validations": 0})
    assert (ranking.best, ranking.stale) == ([], 0)
