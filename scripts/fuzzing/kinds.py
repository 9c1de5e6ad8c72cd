"""The kinds of input; a new one is one line in `KINDS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_policy_ros.replay.summary import load_expected
from fuzzing import bags, files, messages
from fuzzing.damage import Source


class Kind(NamedTuple):
    """One kind of input.

    Attributes:
        name: of the kind.
        make: folder → what is whole.
        damage: whole, source of chance, number of the input, empty folder → what to read.
        read: reads it; gives whatever there is to give.
    """

    name: str
    make: Callable[[Path], Any]
    damage: Callable[[Any, Source, int, Path], Any]
    read: Callable[[Any], Any]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("contract", files.shipped("contracts"), files.damage_file, files.read_contract),
        Kind("recipe", files.shipped("recipes"), files.damage_file, files.read_recipe),
        Kind("checkpoint", files.make_checkpoint, files.damage_checkpoint, files.read_checkpoint),
        Kind("mcap", bags.make_mcaps, bags.damage_bag, bags.read_bag),
        Kind("sqlite", bags.make_sqlites, bags.damage_bag, bags.read_bag),
        Kind("zstd", bags.make_zstds, bags.damage_bag, bags.read_bag),
        Kind("message", messages.make_messages, messages.damage_message, messages.read_recorded),
        Kind("dataset", files.make_dataset, files.damage_dataset, files.read_dataset),
        Kind("figures", files.make_figures, files.damage_figures, load_expected),
        Kind("live", messages.make_messages, messages.damage_message, messages.read_live),
    )
    if kind.name != "live" or importlib.util.find_spec("rclpy")
}
