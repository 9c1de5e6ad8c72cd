"""One HTML file that holds everything: opens anywhere, mails well, needs no server."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from diffusion_policy_ros.atomic import replacing

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
color: #222; } h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } table {
border-collapse: collapse; margin: .5rem 0; } td, th { padding: .2rem .8rem .2rem 0; text-align:
left; border-bottom: 1px solid #ddd; } td:last-child { font-variant-numeric: tabular-nums; } img {
max-width: 100%; border: 1px solid #ddd; border-radius: 4px; } .good { color: #117733; } .bad {
color: #aa3322; } code { background: #f4f4f4; padding: .1rem .3rem; border-radius: 3px; }
figcaption { color: #666; } figure { margin: 1rem 0; }
"""

_MEDIA = {".png": "image/png", ".gif": "image/gif"}


class Page:
    """An HTML page, written from top to bottom."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """A command to copy."""
        self._parts.append(f"<p><code>{escape(text)}</code></p>")

    def facts(self, rows: Mapping[str, object]) -> None:
        """A table of names and values."""
        self.table((), list(rows.items()))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table; True and False become a green yes and a red no, counts a list of them."""
        lines = (
            ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
            if head
            else []
        )
        lines += [
            "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows
        ]
        self._parts.append("<table>" + "\n".join(lines) + "</table>")

    def picture(self, path: Path, caption: str) -> None:
        """A PNG or GIF, held in the page; left out with a word where the file is missing."""
        if not path.is_file():
            self.paragraph(f"({caption}: not made)")
            return
        self.figure(path.read_bytes(), caption, _MEDIA[path.suffix])

    def figure(self, data: bytes, caption: str, media: str = "image/png") -> None:
        """A picture that is in memory, held in the page."""
        source = f"data:{media};base64,{base64.b64encode(data).decode()}"
        self._parts.append(
            f'<figure><img src="{source}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def save(self, path: Path) -> None:
        """Write the page; what is there already stays until it is whole.

        Raises:
            OSError: it cannot be written.
        """
        head = f'<meta charset="utf-8"><title>{escape(self._title)}</title><style>{STYLE}</style>'
        body = "\n".join(self._parts)
        text = f"<!doctype html><html><head>{head}</head><body>\n{body}</body></html>\n"
        with replacing(path) as draft:
            # Names of files may hold bytes that are no text.
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f'<span class="{"good" if value else "bad"}">{"yes" if value else "no"}</span>'
    if isinstance(value, dict):
        return escape(", ".join(f"{key} {count}" for key, count in value.items()) or "–")
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
