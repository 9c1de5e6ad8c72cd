"""`diffusion-policy train`: mistakes are one line each and exit code 2."""

import argparse

import pytest

from diffusion_policy_ros.cli import train as verb
from diffusion_policy_ros.errors import UserError


def parsed(*words):
    """The verb's arguments."""
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    return parser.parse_args(["train", *words])


def test_a_recipe_is_needed(tmp_path):
    """The shipped ones are named."""
    args = parsed("--dataset", str(tmp_path), "--out", str(tmp_path / "run"))
    with pytest.raises(UserError, match="no recipe.*mini_lift, mini_lift_state, recommended"):
        args.run(args)


def test_settings_are_checked_before_anything_is_read(tmp_path):
    """An unknown key suggests the near one, and no run is begun."""
    words = ["--dataset", str(tmp_path), "--config", "mini_lift", "--out", str(tmp_path / "run")]
    args = parsed(*words, "training.update=5", "policy.horizon=17")
    with pytest.raises(UserError) as caught:
        args.run(args)
    assert "training.update: unknown key; did you mean 'updates'?" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_dataset_is_named(tmp_path):
    """With the command that makes one."""
    words = ["--config", "mini_lift", "--out", str(tmp_path / "run")]
    args = parsed("--dataset", str(tmp_path / "nothing"), *words)
    with pytest.raises(UserError, match="nothing: no such dataset.*diffusion-policy convert"):
        args.run(args)


def test_resume_takes_the_run_s_own_recipe(tmp_path):
    """Without --config; where there is no run, that is what is said."""
    args = parsed("--dataset", str(tmp_path), "--out", str(tmp_path / "run"), "--resume")
    with pytest.raises(UserError, match="run: no run to resume; leave out --resume"):
        args.run(args)
