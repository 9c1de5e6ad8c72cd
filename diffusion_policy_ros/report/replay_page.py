"""A replay as one HTML page: figures, plots, and pictures of the recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_policy_ros.contract import Contract
from diffusion_policy_ros.replay.figures import PATH
from diffusion_policy_ros.replay.reading import Replayed, roles_said
from diffusion_policy_ros.replay.summary import overall
from diffusion_policy_ros.report import replay_plots
from diffusion_policy_ros.report.html import Page
from diffusion_policy_ros.report.limits import limit_lines

SHOWN, LISTED = 3, 50
"""Recordings whose actions are drawn, and that are listed."""


def write_page(
    path: Path, replayed: Sequence[Replayed], contract: Contract, found: Mapping[str, Any]
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        replayed: the recordings.
        contract: the robot.
        found: the figures, see `replay.summary`.
    """
    page = Page(f"Replay: {contract.name}")
    _introduce(page, replayed, found)
    _errors(page, found)
    _actions(page, replayed, contract, found)
    _disagreement(page, found)
    _limits(page, contract, found)
    _streams(page, replayed, contract, found)
    _live(page, found)
    page.save(path)


def _introduce(page: Page, replayed: Sequence[Replayed], found: Mapping[str, Any]) -> None:
    page.paragraph(
        "What the policy would have commanded over a recording. Nothing moved: each chunk starts "
        "from what was recorded, so the policy never sees the consequences of its own actions."
    )
    frames, names = found["frames"], ", ".join(found["recordings"])
    page.facts(
        {
            "of them": roles_said(one.role for one in replayed),
            "recordings": names if len(names) < 300 else f"{len(replayed)}: {names[:250]}...",
            "frames": f"{frames['made']}, {sum(frames['refused'].values())} refused, "
            f"{frames['gaps']} gaps, {frames['resets']} resets",
            "chunks": f"{found['chunks']}, of which {found['executed_steps']} steps are executed",
            "compared with": ", ".join(sorted({one.source or "nothing" for one in replayed})),
            "checkpoint": found["checkpoint"],
            "sampling": f"{found['sampler']}, {found['num_inference_steps']} steps, "
            f"{found['chunk_join']}, seed {found['seed']}, {found['engine']}",
        }
    )
    if any(one.role == "trained" for one in replayed):
        page.paragraph(
            "Of recordings that were trained on errors say little: they are small whatever was "
            "learned. Judge by those held out."
        )
    rows = [(one.name, one.role, len(one.chunks)) for one in replayed[:LISTED]]
    page.table(("recording", "in the training", "chunks"), rows)
    for note in sorted({note for one in replayed for note in one.notes}):
        page.paragraph(f"Note: {note}.")


def _errors(page: Page, found: Mapping[str, Any]) -> None:
    page.heading("Against what was done")
    if not overall(found["error"], found["executed_steps"]):
        page.paragraph(
            "The recording holds no commands, and the action does not follow from the states, so "
            "there is nothing to compare with."
        )
        return
    page.paragraph(
        "There may be several good ways on, so the error of a good policy is not zero. It should "
        "be clearly below that of repeating the action before. Means over all chunks."
    )
    page.table(
        ("field", "unit", "first action", "executed", "whole horizon", "repeating, executed"),
        list(_error_rows(found)),
    )
    if any(name.startswith(PATH) for name in found["error"]):
        page.paragraph(
            f"“{PATH}…” sums up the chunk's deltas: how far from the recorded way the arm would "
            "be after so many steps, if it followed them exactly."
        )
    plot = replay_plots.by_step(
        {"policy": found["error"], "repeating": found["error_of_repeating"]}, found
    )
    _figure(
        page, plot, "Error by step of the horizon; the shade ends where 95 % of the chunks lie"
    )


def _error_rows(found: Mapping[str, Any]) -> list[tuple[object, ...]]:
    executed, rows = found["executed_steps"], []
    parts = [overall(found["error"], steps) for steps in (1, executed, 10**6)]
    repeated = overall(found["error_of_repeating"], executed)
    for name in parts[1]:
        values = [part.get(name, "–") for part in (*parts, repeated)]
        rows.append((name, found["units"][name], *values))
    return rows


def _actions(
    page: Page, replayed: Sequence[Replayed], contract: Contract, found: Mapping[str, Any]
) -> None:
    page.heading("The actions")
    for one in replayed[:SHOWN]:
        plot = replay_plots.actions(one, contract, found["executed_steps"])
        caption = (
            f"{one.name}: black what was done, coloured the executed part of each chunk, pale its "
            "tail"
        )
        _figure(page, plot, caption)
    if len(replayed) > SHOWN:
        page.paragraph(f"The other {len(replayed) - SHOWN} recordings are in the figures only.")
    plot = replay_plots.pictures(replayed, contract, found["executed_steps"])
    if plot is not None:
        _figure(
            page,
            plot,
            "Where the policy differs most from what was done, by the first field's error",
        )


def _disagreement(page: Page, found: Mapping[str, Any]) -> None:
    page.heading("Chunk against chunk")
    if not found["disagreement"]:
        page.paragraph(
            "No two chunks are of the same times; a smaller --every makes them overlap."
        )
        return
    page.paragraph(
        "How far a new chunk is from the one before at the times that both are of. The first step "
        "is what the arm would feel as a jump where chunks meet; large values at later steps say "
        "that the policy changes its mind."
    )
    plot = replay_plots.by_step({"new against old": found["disagreement"]}, found)
    _figure(page, plot, "Disagreement by step of the newer chunk")


def _limits(page: Page, contract: Contract, found: Mapping[str, Any]) -> None:
    page.heading("Limits")
    limits = found["limits"]
    if limits["rejected_chunks"]:
        page.table(("rejected for", "chunks"), list(limits["rejected_chunks"].items()))
    if not limits["clamped"]:
        page.paragraph(f"None of {limits['actions']} executed actions exceeds a limit.")
        return
    shares = [(name, f"{share:.1%}") for name, share in limits["clamped"].items()]
    page.table(("limit", "actions that it clamps"), shares)
    page.paragraph(
        "A limit that clamps often either is too tight for the task, or the policy was trained on "
        f"other units. The contract's limits: {', '.join(limit_lines(contract.action))}."
    )


def _streams(
    page: Page, replayed: Sequence[Replayed], contract: Contract, found: Mapping[str, Any]
) -> None:
    page.heading("Streams")
    if not found["age_ms"]:
        page.paragraph("A dataset holds no ages; replay the bag for them.")
        return
    heads = ("stream", "topic", "age p50, ms", "p99", "largest", "allowed")
    rows = [
        (key, contract.observations[key].topic, a["p50"], a["p99"], a["max"], a["allowed"])
        for key, a in found["age_ms"].items()
    ]
    page.table(heads, rows)
    frames = found["frames"]
    if frames["refused"]:
        page.table(("frames refused for", "count"), list(frames["refused"].items())[:20])
    if frames["gaps"]:
        page.paragraph(f"{frames['gaps']} gaps, the longest {frames['longest_gap_s']:.3g} s.")
    for reason in [reason for one in replayed for reason in one.resets][:5]:
        page.paragraph(f"Reset: {reason}.")
    plot = replay_plots.ages(replayed[0])
    _figure(
        page,
        plot,
        f"{replayed[0].name}: above, how old each stream is when a frame is made; "
        "below, the time between frames",
    )


def _live(page: Page, found: Mapping[str, Any]) -> None:
    live = found["live"]
    if live is None:
        return
    page.heading("Against the node's own chunks")
    page.paragraph(
        "The recording holds chunks that the node published. Sampled again from the same frames "
        "with the same noise they must be the same."
    )
    page.facts(
        {
            "chunks recorded": live["chunks"],
            "compared": live["compared"],
            "the same": live["same"],
            "largest difference": live["largest_difference"],
            "holds": live["holds"],
            "frame to chunk": "p50 {delay_ms_p50:.4g} ms, p99 {delay_ms_p99:.4g} ms".format(
                **live
            ),
        }
    )
    if live["same"] < live["compared"]:
        page.paragraph(
            "What may make them differ: another engine or precision (the node ran "
            f"{live['engine'] or 'what it did not say'}; --engine, --dtype), another seed "
            "(--seed; the node's diagnostics say it as noise_seed), sampler, steps or way of "
            "joining chunks, or messages that reached the node and the recorder in another order."
        )
    if live["player"]:
        page.table(("the action player counted", ""), list(live["player"].items()))
    if live["said"]:
        page.table(("diagnostics said", "reports"), list(live["said"].items())[:20])


def _figure(page: Page, plot: bytes | None, caption: str) -> None:
    if plot is None:
        page.paragraph(f"({caption}: no picture, install matplotlib)")
    else:
        page.figure(plot, caption)
