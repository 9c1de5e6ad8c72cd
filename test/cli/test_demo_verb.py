"""`diffusion-policy demo`: what it refuses before it works for minutes."""

import pytest

from diffusion_policy_ros.cli.main import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--episodes", "0"], "episodes must be 1 or more"),
        (["--demonstrations", "-3"], "demonstrations must be 1 or more"),
        (["training.update=5"], "did you mean 'updates'?"),
        (["--json", "/dev/null/figures.json"], "cannot be written"),
    ],
)
def test_a_mistake_is_found_before_the_first_stage(tmp_path, monkeypatch, words, expected, capsys):
    """One line, exit code 2, and nothing recorded."""
    monkeypatch.setattr("diffusion_policy_ros.cli.demo._check_parts", lambda: None)
    assert main(["demo", "--state", "--out", str(tmp_path / "demo"), *words]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "demo").exists()
