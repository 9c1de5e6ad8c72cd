"""The report is one HTML file that holds everything."""

import errno

import pytest
from PIL import Image

from diffusion_policy_ros.cli.figures import write_json
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


@pytest.mark.parametrize("write", [Page("new").save, lambda path: write_json(path, {"a": 1})])
def test_a_full_disk_leaves_the_report_of_before_and_names_it(tmp_path, monkeypatch, write):
    """Neither a page that is cut off, nor a draft beside it; a link to a report stays one."""
    report, link = tmp_path / "whole", tmp_path / "link"
    report.write_text("before")
    link.symlink_to(report)

    def full(draft, *_, **__):
        draft.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "write_text", full)
        with pytest.raises(OSError, match="No space left.*link"):
            write(link)
    assert report.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 2
    write(link)
    assert link.is_symlink() and report.read_bytes() != b"before"
