"""Demonstrations of other projects into a dataset: all of them at the end, or none."""

from __future__ import annotations

from pathlib import Path

from diffusion_policy_ros.data.formats.matched import Matched
from diffusion_policy_ros.data.reports import Progress, Report
from diffusion_policy_ros.data.store import adding
from diffusion_policy_ros.errors import UserError


def import_demonstrations(
    source: Matched, out: str | Path, progress: Progress | None = None
) -> Report:
    """Make a dataset of demonstrations, or add those that it does not have yet.

    Args:
        source: in the contract's keys.
        out: the dataset's folder; made if it is missing.
        progress: told of each demonstration when it is done.

    Raises:
        UserError: nothing could be imported, or the dataset is another robot's. It is as it was.
    """
    with adding(out, source.contract, source.images) as new:
        for done, name in enumerate(source.names, 1):
            try:
                report = new.add(source.read(name))
            except UserError as error:
                report = new.reject(f"{source.where}/{name}", str(error))
            if progress is not None:
                progress(report, done, len(source.names))
    return new.report
