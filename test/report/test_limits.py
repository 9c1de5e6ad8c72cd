"""A contract's limits, as contract check and a replay's page print them."""

from diffusion_policy_ros.contract import Contract, Limits
from diffusion_policy_ros.report import replay_page
from diffusion_policy_ros.report.html import Page
from diffusion_policy_ros.report.limits import limit_lines


def test_only_what_is_set_is_told_with_its_unit():
    """Numbers, vectors and words; nothing of what has no limit."""
    limits = Limits(translation=0.05, workspace_min=(0.2, -0.4, 0.02), joint_lead=(0.1,))
    assert list(limit_lines(limits)) == [
        "translation: 0.05 m",
        "workspace_min: [0.2, -0.4, 0.02] m",
        "joint_lead: [0.1]",
        "chunk_timeout_s: 1 s",
        "observation_timeout_s: 0.5 s",
        "on_stale: hold",
    ]


def test_a_replay_names_them_where_one_clamps(tmp_path):
    """As words, not as Python prints them."""
    page, contract = Page("Replay"), Contract.load("example_arm")
    clamped = {"rejected_chunks": {}, "clamped": {"translation": 0.4}, "actions": 10}
    replay_page._limits(page, contract, {"limits": clamped})
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "limits: translation: 0.05 m, rotation: 0.3 rad" in text
    assert "None" not in text and "Limits(" not in text
