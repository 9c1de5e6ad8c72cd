"""Datasets of other projects: one module a format, one line in `FORMATS`.

A module has one or both of

    def read(path, options: Reading) -> Demonstrations     # what importing.py writes
    def write(dataset, out, options: Writing) -> Written   # of a dataset of ours

and imports what only its format needs (pyarrow, av, h5py, imagecodecs) when it is used, with
`needed`. Nothing that runs on a robot imports this folder.
"""

from __future__ import annotations

import importlib
from typing import Any

from diffusion_policy_ros.errors import UserError

FORMATS: dict[str, str] = {
    "lerobot": "a LeRobot dataset, v3.0 or v2.1, with images or video",
    "zarr": "a replay buffer of diffusion_policy or UMI: a .zarr folder or a .zarr.zip",
    "robomimic": "an HDF5 file of robomimic",
    "aloha": "a folder of ACT's and ALOHA's episode_N.hdf5",
}
"""Name, which is its module's, too → what it is."""


def format_of(name: str) -> Any:
    """A format's module."""
    return importlib.import_module(f"{__name__}.{name}")


def needed(module: str, extra: str) -> Any:
    """Import what only some formats need.

    Args:
        module: its name.
        extra: the extra of this package that installs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        cure = f"pip install 'diffusion_policy_ros[{extra}]'"
        raise UserError(f"{module.partition('.')[0]} is not installed", "", cure) from None
