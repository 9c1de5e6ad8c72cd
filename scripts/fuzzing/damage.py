"""Ways to damage bytes, and YAML text."""

from __future__ import annotations

import random
import re

Source = random.Random


def damaged(data: bytes, source: Source) -> bytes:
    """Some bytes, damaged in one of several ways."""
    ways = (_flip, _flip, _extreme, _extreme, _cut, _insert, _remove, _swap, _blank)
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        data = source.choice(ways)(data, source) if data else data
    return data


def _place(data: bytes, source: Source) -> int:
    """Heads and tails hold what matters: every second place is there."""
    near = min(len(data), 300)
    if source.random() < 0.5:
        return (
            source.randrange(near)
            if source.random() < 0.5
            else len(data) - 1 - (source.randrange(near))
        )
    return source.randrange(len(data))


def _flip(data: bytes, source: Source) -> bytes:
    found = bytearray(data)
    for _ in range(source.choice((1, 2, 8))):
        found[_place(data, source)] ^= 1 << source.randrange(8)
    return bytes(found)


def _extreme(data: bytes, source: Source) -> bytes:
    """A length, a count or a stamp becomes the largest, the smallest, or one too many."""
    size, place = source.choice((1, 2, 4, 8)), _place(data, source)
    values = (2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 0, 1, 255)
    value = source.choice(values) % 2 ** (8 * size)
    return (data[:place] + value.to_bytes(size, "little") + data[place + size :])[: len(data)]


def _cut(data: bytes, source: Source) -> bytes:
    return data[: _place(data, source)]


def _insert(data: bytes, source: Source) -> bytes:
    place = _place(data, source)
    return data[:place] + source.randbytes(source.choice((1, 4, 100))) + data[place:]


def _remove(data: bytes, source: Source) -> bytes:
    place = _place(data, source)
    return data[:place] + data[place + source.choice((1, 4, 100)) :]


def _swap(data: bytes, source: Source) -> bytes:
    a, b = sorted((_place(data, source), _place(data, source)))
    size = min(source.choice((4, 16, 64)), b - a)
    moved = bytearray(data)
    moved[a : a + size], moved[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(moved[: len(data)])


def _blank(data: bytes, source: Source) -> bytes:
    place, size = _place(data, source), source.choice((8, 64, 512))
    return (data[:place] + bytes(size) + data[place + size :])[: len(data)]


# Text

VALUES = r"""
nan .inf -.inf -1 0 1 1e400 1e-400 99999999999999999999 0x7fffffff 1_000 2024-13-45 yes ~ null
2024-11-21T00:00:00Z '' "" [] {} [[]] {a:b} *a &a !!python/object:os.system !!int !!binary !!set
!!timestamp << ? | > - : # @ ` % \ é 机 𝄞 ${HOME} "\x1b[2J" "\0" "\u2028" "\ud800"
"""
VALUES = VALUES.split()
VALUES += ["a" * 5000, "[" * 3000, "{a: " * 1500, "1" * 5000, "\t", "&a [*a]"]
VALUES += ["\x00", "\x07", "\x1b[2J", "\u2028", "\ufeff", "\ud800"]
BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def damaged_text(text: str, source: Source) -> bytes:
    """YAML with its keys, values or lines mixed up, or its bytes damaged."""
    if source.random() < 0.25:
        return damaged(text.encode(), source)
    for _ in range(source.choice((1, 1, 2, 4))):
        text = source.choice((_value, _value, _value, _key, _line, _lines, _indent, _bomb))(
            text, source
        )
    return text.encode("utf-8", "surrogatepass")


def _value(text: str, source: Source) -> str:
    """Some value becomes another one, of this text or of none."""
    found = list(re.finditer(r"[^\s\[\]{},:]+(?=\s*(?:[,\]}\n]|$))", text))
    if not found:
        return text
    at = source.choice(found)
    new = source.choice(VALUES) if source.random() < 0.7 else source.choice(found).group()
    return text[: at.start()] + new + text[at.end() :]


def _key(text: str, source: Source) -> str:
    """Two keys change places, or one is misspelt."""
    found = list(re.finditer(r"\w+(?=:)", text))
    if len(found) < 2:
        return text
    a, b = sorted(source.sample(found, 2), key=lambda match: match.start())
    if source.random() < 0.5:
        return text[: a.start()] + a.group()[:-1] + "x" + text[a.end() :]
    between = text[a.end() : b.start()]
    return text[: a.start()] + b.group() + between + a.group() + text[b.end() :]


def _line(text: str, source: Source) -> str:
    lines = text.splitlines()
    at = source.randrange(max(len(lines), 1))
    lines[at : at + 1] = [[], lines[at : at + 1] * 2][source.randrange(2)]
    return "\n".join(lines)


def _lines(text: str, source: Source) -> str:
    lines = text.splitlines()
    source.shuffle(lines)
    return "\n".join(lines)


def _indent(text: str, source: Source) -> str:
    lines = text.splitlines()
    at = source.randrange(max(len(lines), 1))
    lines[at : at + 1] = [source.choice(("  ", "\t", " ")) + line for line in lines[at : at + 1]]
    return "\n".join(lines)


def _bomb(text: str, source: Source) -> str:
    """Aliases of aliases: nine lists of nine lists of …"""
    return BOMB + text.replace("rate_hz: 20", "rate_hz: *i") if source.random() < 0.3 else text
