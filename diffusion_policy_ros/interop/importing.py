"""A checkpoint of another project becomes one of ours; without a contract, a contract's draft."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.interop.foreign import Camera, Foreign, Matches, build, match, table
from diffusion_policy_ros.interop.lerobot import CONFIG, WEIGHTS, find_lerobot, read_lerobot
from diffusion_policy_ros.interop.original import read_original
from diffusion_policy_ros.policy.checkpoint import MANIFEST, save_checkpoint, sha256

LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "license*", "licence*")


def read_foreign(path: str | Path) -> Foreign:
    """The policy of another project's checkpoint.

    Args:
        path: a folder of LeRobot's or a run of it, or a `.ckpt` of the original or a run of it.

    Raises:
        UserError: it is no checkpoint that is known, is damaged, or cannot be expressed here.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("no such file or folder", str(path), "give a checkpoint")
    if path.is_file():
        path = path.parent if path.name in (CONFIG, WEIGHTS) else path
        if path.is_file():
            return read_original(path)
    if (path / MANIFEST).is_file():
        raise UserError("is a checkpoint of this project", str(path), "use it as it is")
    folder = find_lerobot(path)
    if folder is not None:
        return read_lerobot(folder)
    latest = path / "checkpoints" / "latest.ckpt"
    if latest.is_file():
        return read_original(latest)
    cure = f"give a folder with {CONFIG} and {WEIGHTS}, or a .ckpt"
    raise UserError("there is no checkpoint of another project here", str(path), cure)


def import_checkpoint(
    path: str | Path,
    contract: Contract,
    out: str | Path,
    said: Matches | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Write a checkpoint of ours that gives the same actions.

    Args:
        path: see `read_foreign`.
        contract: what its numbers are on the robot; sizes are checked.
        out: the new checkpoint's folder.
        said: which of the contract's observations is which of theirs, where names do not say it.
        tell: is told what is what, before anything is written.

    Raises:
        UserError: contract and checkpoint do not fit, or something is there already; nothing is
            written then.
    """
    out = Path(out)
    if out.exists():
        raise UserError("is there already", str(out), "give another folder, or remove it")
    foreign = read_foreign(path)
    matches = match(foreign, contract, said)
    tell(f"{foreign.origin}:")
    for line in [*table(foreign, contract, matches), *foreign.remarks]:
        tell(line)
    policy = build(foreign, contract, matches, _slug(Path(path)))
    return save_checkpoint(out, policy, notes="\n".join(_notes(foreign, contract, matches)) + "\n")


def _slug(path: Path) -> str:
    name = path.parent.name if path.name == "pretrained_model" else path.stem
    return re.sub(r"\W+", "_", name).strip("_") or "imported"


def _notes(foreign: Foreign, contract: Contract, matches: Matches) -> Iterator[str]:
    yield f"- Imported from: {foreign.origin}"
    for file in foreign.files:
        yield f"  - `{file.name}`, SHA-256 `{sha256(file)}`"
    yield f"- Licence: {_licence(foreign)}"
    yield "- Its observations are these of the contract, in the order of its condition:"
    yield from (f"  - {line.strip()}" for line in table(foreign, contract, matches))
    yield from (f"- Note: {remark}" for remark in foreign.remarks)


def _licence(foreign: Foreign) -> str:
    folder = foreign.files[0].parent
    files = sorted({path.name for pattern in LICENCES for path in folder.glob(pattern)})
    if files:
        return f"`{files[0]}` beside its files"
    said = f"'{foreign.licence}' by its {CONFIG}, " if foreign.licence else ""
    return f"{said}no licence file beside its files: ask who trained it"


def draft_contract(foreign: Foreign, path: str | Path) -> str:
    """The YAML of a contract with a checkpoint's sizes; what it does not know is marked GAP."""
    keys = [_key(o.name) for o in foreign.observations]
    anchor = next((_key(c.name) for c in foreign.cameras), keys[0])
    lines = [
        f"# Drafted from {Path(path).name}, which knows sizes, but not what its numbers are: fill",
        "# in what is marked GAP as its dataset has it, then run",
        "#   diffusion-policy contract check FILE",
        f"name: {_slug(Path(path))}",
        "rate_hz: 10  # GAP: frames a second of its dataset",
        f"anchor: {anchor}",
        "observations:  # in any order; vectors may be split into several streams, in their order",
    ]
    for key, theirs in zip(keys, foreign.observations, strict=True):
        if isinstance(theirs, Camera):
            told = f"topic: /{key}/image_raw, type: sensor_msgs/msg/Image, shape: "
            lines.append(f"  {key}: {{{told}{list(theirs.shape)}}}  # GAP: topic")
        else:
            told = f"topic: /{key}, type: sensor_msgs/msg/JointState, shape: [{theirs.size}]"
            lines.append(f"  {key}: {{{told}}}  # GAP: topic, type, field, names, scale to SI")
    size = foreign.action.size
    return "\n".join(
        [
            *lines,
            "action:",
            "  fields:  # GAP: kinds, absolute or deltas, frames, what measures them, limits",
            f"    - {{name: action, kind: joint_position, size: {size}}}",
            "  record:  # GAP: the recorded command, or next_state",
            f"    {{topic: /command, type: trajectory_msgs/msg/JointTrajectory, shape: [{size}]}}",
        ]
    )


def _key(name: str) -> str:
    return name.rpartition(".")[2]
