"""A contract's limits, as contract check and a replay's page print them."""

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.report import replay_page
from diffusion_policy_ros.report.html import Page
from diffusion_policy_ros.report.limits import limit_lines


def test_only_what_is_set_is_told_with_its_unit():
    """Numbers, vectors and words, field by field; nothing of what has no limit."""
    assert list(limit_lines(Contract.load("example_arm").action)) == [
        "translation.step: 0.05 m",
        "translation.lead: 0.05 m",
        "translation.min: [0.2, -0.4, 0.02] m",
        "translation.max: [0.7, 0.4, 0.5] m",
        "rotation.step: 0.3 rad",
        "chunk_timeout_s: 1 s",
        "observation_timeout_s: 0.5 s",
        "on_stale: hold",
    ]


def test_a_replay_names_them_where_one_clamps(tmp_path):
    """As words, not as Python prints them."""
    page, contract = Page("Replay"), Contract.load("example_arm")
    clamped = {"rejected_chunks": {}, "clamped": {"translation.step": 0.4}, "actions": 10}
    replay_page._limits(page, contract, {"limits": clamped})
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "limits: translation.step: 0.05 m, translation.lead: 0.05 m" in text
    assert "None" not in text and "Limits(" not in text
