"""Datasets of other projects: one module a format, one line in `FORMATS`.

A module has one or both of

    def read(path, choice: Choice) -> Foreign           # what importing.py writes
    def check(contract, options: Writing) -> ...        # what `write` would refuse, before it
    def write(path, out, options: Writing) -> Written   # of a dataset of ours

and imports what only its format needs (pyarrow, av, h5py, imagecodecs) when it is used, with
`needed`. Nothing that runs on a robot imports this folder.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from diffusion_policy_ros.errors import UserError, first_line

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
        UserError: it is not installed, or not with what it needs.
    """
    name, cure = module.partition(".")[0], f"pip install 'diffusion_policy_ros[{extra}]'"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{name} is not installed", "", cure) from None
    except ImportError as error:  # the newest pyarrow has no use for the NumPy of apt's Jazzy
        cure = "install another version, as pip install 'pyarrow<21' for NumPy 1.26"
        raise UserError(f"{name} cannot be imported: {first_line(error)}", "", cure) from None


HDF5_DAMAGED = (OSError, RuntimeError, KeyError, ValueError)
"""What h5py raises of a damaged file."""


def opened_hdf5(path: Path) -> Any:
    """An HDF5 file, open for reading.

    Raises:
        UserError: h5py is missing, or the file is damaged, or another process writes it.
    """
    h5py = needed("h5py", "robomimic")
    try:
        return h5py.File(path, "r")
    except BlockingIOError:
        cure = "wait until it is done, or end the process that writes it"
        raise UserError("is locked: another process writes it", str(path), cure) from None
    except HDF5_DAMAGED:
        what = "is cut off, or no HDF5 file"
        raise UserError(what, str(path), "download it again, or give another one") from None
