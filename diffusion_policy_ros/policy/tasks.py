"""Which of several tasks a window is of: text to a learned embedding.

One policy can learn several tasks where what is seen does not say which is meant. The recipe names
them (`policy.tasks`); a window says its own as text, and the network sees one number a task, 1 for
the one that is meant, in every frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.errors import UserError, did_you_mean, names_said

TASK = "task"
"""What a window says its task by, beside its observations."""


def with_tasks(contract: Contract, streams: Mapping[str, Stream], tasks: Sequence[str]) -> Any:
    """Observations, and where there are tasks, which of them is meant.

    Raises:
        UserError: an observation has that name already.
    """
    if not tasks:
        return dict(streams)
    if TASK in streams:
        what = f"'{contract.name}' has an observation '{TASK}'"
        raise UserError(what, "policy.tasks", "rename the observation, or leave tasks out")
    return {**streams, TASK: Stream(name=TASK, shape=(len(tasks),))}


def check_task(task: str, tasks: Sequence[str], where: str = TASK) -> None:
    """Refuse a task that was not trained, and none where there are several.

    Raises:
        UserError: it names those that were.
    """
    if task in tasks or not (task or tasks):
        return
    if not tasks:
        raise UserError(f"'{task}'", where, "leave it out: no tasks were trained")
    if not task:
        raise UserError("no task is said", where, f"give one of: {names_said(tasks)}")
    raise UserError(f"no task '{task}' was trained", where, did_you_mean(task, tasks))


def one_hot(window: Mapping[str, Any], tasks: Sequence[str]) -> NDArray[np.float32]:
    """(B, T, tasks) of a window's tasks (B,).

    Raises:
        UserError: it says none, or one that was not trained.
    """
    told = [str(task) for task in window.get(TASK, [""])]
    for task in set(told):
        check_task(task, tasks)
    seen = (np.shape(value)[1] for key, value in window.items() if key not in (TASK, "action"))
    frames = next(seen, 0)  # a window's statistics are without its pictures, if need be of nothing
    found = np.zeros((len(told), frames, len(tasks)), np.float32)
    found[np.arange(len(told)), :, [tasks.index(task) for task in told]] = 1.0
    return found
