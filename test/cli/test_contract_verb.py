"""`diffusion-policy contract check`."""

from __future__ import annotations

import pytest

from diffusion_policy_ros.cli.main import main
from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.shipped import config_names, config_path


@pytest.mark.parametrize("name", config_names("contracts"))
def test_each_shipped_contract_is_described(name, capsys):
    """The table names every stream, every action component and the hash."""
    contract = Contract.load(name)
    assert main(["contract", "check", name]) == 0
    out = capsys.readouterr().out
    assert contract.hash in out
    for stream in contract.observations.values():
        assert stream.name in out
        assert stream.topic in out
        assert "x".join(map(str, stream.shape)) in out
        assert f"{stream.max_age_s:g} s" in out
    for component in contract.action_names:
        assert component in out


def test_a_file_is_checked_as_well_as_a_name(tmp_path, capsys):
    """A path works like a shipped contract's name."""
    path = tmp_path / "mine.yaml"
    path.write_text(config_path("contracts", "mini_lift").read_text())
    assert main(["contract", "check", str(path)]) == 0
    assert Contract.load("mini_lift").hash in capsys.readouterr().out


def test_every_mistake_is_a_line(tmp_path, capsys):
    """Two mistakes give two lines on stderr, exit code 2 and nothing on stdout."""
    path = tmp_path / "bad.yaml"
    text = config_path("contracts", "mini_lift").read_text()
    path.write_text(text.replace("rate_hz: 20", "rate_hz: quick").replace("anchor: ", "ancor: "))
    assert main(["contract", "check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("error: ") for line in lines)
    assert any("rate_hz" in line for line in lines)
    assert any("did you mean 'anchor'" in line for line in lines)


def test_an_unknown_name_lists_the_shipped_ones(capsys):
    """A contract that is neither file nor shipped is refused with the valid names."""
    assert main(["contract", "check", "no_such_arm"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "mini_lift" in err
