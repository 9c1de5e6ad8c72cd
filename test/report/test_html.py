"""The report is one HTML file that holds everything."""

from PIL import Image

from diffusion_policy_ros.report.html import Page


def test_a_page_holds_text_tables_and_pictures(tmp_path):
    """Text is escaped, pictures are inside, what was not made is said."""
    picture = tmp_path / "loss.png"
    Image.new("RGB", (4, 4)).save(picture)
    page = Page("a < b")
    page.facts({"rate": 0.123456, "done": True})
    page.table(["seed", "clamped"], [[7, {"workspace": 3}], [8, {}]])
    page.picture(picture, "Loss")
    page.picture(tmp_path / "missing.gif", "Rollout")
    page.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "a &lt; b" in text and "a < b" not in text
    assert "0.1235" in text and '<span class="good">yes</span>' in text
    assert "workspace 3" in text and "<td>–</td>" in text
    assert "data:image/png;base64," in text and "(Rollout: not made)" in text
    assert "http" not in text
