"""`diffusion-policy inspect`: what a bag or a dataset holds, and a first contract for a bag."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_policy_ros.atomic import replacing
from diffusion_policy_ros.cli.view import add_rerun, viewing
from diffusion_policy_ros.errors import UserError
from diffusion_policy_ros.report.table import table

if TYPE_CHECKING:
    from diffusion_policy_ros.data.bags import Bag
    from diffusion_policy_ros.data.dataset import WindowDataset
    from diffusion_policy_ros.data.survey import Topic
    from diffusion_policy_ros.report.rerun import View

TOPIC_HEADS = ("topic", "type", "count", "rate", "jitter", "longest gap", "log - stamp")
KEY_HEADS = ("key", "array", "min", "1%", "50%", "99%", "max", "mean", "std")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what a bag or a dataset holds; drafts a contract for a bag",
        description="Show a bag's topics and timing and draft a contract, or a dataset's contents",
    )
    parser.add_argument("path", metavar="BAG|DATASET", help="a rosbag2 recording, or a dataset")
    parser.add_argument("--draft", metavar="FILE", help="write the drafted contract here")
    add_rerun(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is there.

    Raises:
        UserError: neither a bag nor a dataset, or FILE exists, or is of a dataset.
    """
    with viewing(args) as view:
        return _inspect(args, view)


def _inspect(args: argparse.Namespace, view: View | None) -> int:
    from diffusion_policy_ros.data.bags import open_bag
    from diffusion_policy_ros.data.dataset import INDEX, WindowDataset
    from diffusion_policy_ros.data.draft import draft
    from diffusion_policy_ros.data.survey import survey

    path = Path(args.path)
    if (path / INDEX).exists():
        if args.draft:
            cure = f"leave it out; {INDEX} in it has the contract"
            raise UserError("a dataset has its contract already", f"--draft {args.draft}", cure)
        windows = WindowDataset(path, n_obs_steps=1, horizon=1)
        print("\n".join(describe_dataset(windows)))
        if view:
            view.add_episodes(windows.dataset, windows.numbers)
        return 0
    if not path.exists():
        cure = "give a rosbag2 directory, an .mcap or a .db3 file, or a dataset's folder"
        raise UserError("no such bag or dataset", str(path), cure)
    if args.draft:
        refuse_existing(Path(args.draft))
    bag = open_bag(path)
    topics = survey(bag)
    print("\n".join(describe_bag(bag, topics)))
    if view:
        _show(view, bag, topics)
    try:
        text = draft(path, topics)
    except UserError as error:
        if args.draft:
            raise
        print(f"\nno contract can be drafted: {error.what}; {error.cure}")
        return 0
    if args.draft:
        with replacing(Path(args.draft)) as part:
            part.write_text(text, encoding="utf-8")
        following = f"diffusion-policy contract check {shlex.quote(args.draft)}"
        print(f"\ncontract drafted: {args.draft}; next: {following}")
    else:
        print(f"\ncontract drafted (--draft FILE writes it):\n\n{text}", end="")
    return 0


def _show(view: View, bag: Bag, topics: dict[str, Topic]) -> None:
    """A bag's frames by the contract that it was recorded with, or one that is drafted of it."""
    from diffusion_policy_ros.contract import Contract
    from diffusion_policy_ros.data.draft import draft
    from diffusion_policy_ros.replay.reading import read_bag

    text = bag.metadata.get("contract", "") or draft(bag.path, topics)
    contract = Contract.from_text(text, f"{bag.path}: contract")
    view.add_bag(0, read_bag(bag.path, contract, view.sees(0)), contract)


def refuse_existing(path: Path) -> None:
    """Never overwrite a contract that somebody may have worked on.

    Raises:
        UserError: the file exists, or its directory does not.
    """
    if path.exists():
        raise UserError("the file exists", str(path), "choose another name for --draft")
    if not path.absolute().parent.is_dir():
        raise UserError("there is no such directory", str(path.parent), "make it first")


def describe_bag(bag: Bag, topics: dict[str, Topic]) -> Iterator[str]:
    """Yield the lines that tell a person what is in a bag."""
    messages = sum(topic.count for topic in topics.values())
    duration = max(topic.duration_s for topic in topics.values())
    yield f"bag       {bag.path}"
    yield f"holds     {messages} messages on {len(topics)} topics, {duration:.1f} s"
    contract = "the contract it was recorded with" if "contract" in bag.metadata else ""
    told = {k: v for k, v in bag.metadata.items() if k not in ("contract", "remarks")}
    noted = [f"{k}: {v}" for k, v in told.items() if len(v) < 80]
    if contract or noted:
        yield f"noted     {', '.join([contract] * bool(contract) + noted)}"
    yield from (f"note      {note}" for note in (*bag.notes, *bag.remarks))
    yield ""
    yield from table(TOPIC_HEADS, [topic_row(topic) for topic in topics.values()])
    remarks = [f"  {t.name}: {remark}" for t in topics.values() for remark in t.remarks()]
    yield from ["", *remarks] if remarks else []


def topic_row(topic: Topic) -> tuple[str, ...]:
    """Return a topic's line."""
    offset = "-"
    if topic.offset_s is not None:
        offset = f"{topic.offset_s:.4g} s ± {topic.offset_spread_ms:.1f} ms"
    return (
        topic.name,
        topic.type,
        str(topic.count),
        f"{topic.rate_hz:.1f} Hz",
        f"{topic.jitter_ms:.1f} ms",
        f"{topic.longest_s:.2f} s",
        offset,
    )


def describe_dataset(windows: WindowDataset) -> Iterator[str]:
    """Yield the lines that tell a person what is in a dataset."""
    lengths = sorted(episode.frames for episode in windows.episodes)
    known = [e.success for e in windows.episodes if e.success is not None]
    contract = windows.contract
    yield f"dataset   {windows.dataset.path}"
    yield f"contract  {contract.name}, hash {contract.hash}, {contract.rate_hz:g} Hz"
    median = lengths[len(lengths) // 2]
    yield f"episodes  {len(lengths)}, of {lengths[0]} to {lengths[-1]} frames (median {median})"
    seconds = sum(lengths) / contract.rate_hz
    yield f"frames    {sum(lengths)}, {seconds:.0f} s"
    if known:
        yield f"success   {sum(known)} of {len(known)}"
    yield ""
    yield from table(KEY_HEADS, list(key_rows(windows)))
    remarks = [f"  {remark}" for remark in (*depths(windows), *compared(windows))]
    yield from ["", *remarks] if remarks else []


def depths(windows: WindowDataset) -> Iterator[str]:
    """Yield how far away what depth pictures show is: a wrong scale is seen here."""
    import numpy as np

    from diffusion_policy_ros.observe.images import metres_of

    for key, stream in windows.contract.observations.items():
        if stream.is_depth:
            column = windows.dataset.rows[key]
            places = np.linspace(0, len(windows.frames) - 1, min(len(windows.frames), 50))
            metres = metres_of(stream, column.take(windows.frames[places.astype(np.int64)]))
            known = metres[np.isfinite(metres)]
            if not len(known):
                yield f"{key}: nothing between {stream.near:g} and {stream.far:g} m"
                continue
            low, middle, high = np.quantile(known, [0.01, 0.5, 0.99])
            unknown = 1 - len(known) / metres.size
            yield f"{key}: {low:.2f} to {high:.2f} m, median {middle:.2f}, {unknown:.0%} unknown"


def compared(windows: WindowDataset) -> Iterator[str]:
    """Yield what looks permuted, turned round or of other units."""
    import numpy as np

    from diffusion_policy_ros.data.comparison import Comparison
    from diffusion_policy_ros.data.dataset import ACTION

    dataset, comparison = windows.dataset, Comparison(windows.contract)
    vectors = [key for key, s in windows.contract.observations.items() if not s.is_image]
    for number, episode in enumerate(dataset.episodes):
        rows = dataset.first_row(number) + np.arange(episode.frames)
        states = {key: dataset.rows[key].take(rows) for key in vectors}
        comparison.add(states, dataset.rows[ACTION].take(rows))
    yield from comparison.remarks()


def key_rows(windows: WindowDataset) -> Iterator[tuple[str, ...]]:
    """Yield one line for each component of each key: what normalisers are fitted to."""
    for key, found in windows.statistics().items():
        column = windows.dataset.rows[key]
        shape = "x".join(map(str, column.shape))
        for i in range(len(found["mean"])):
            middle = found["quantiles"][[0, len(found["quantiles"]) // 2, -1], i]
            ends = [found[name][i] for name in ("min", "max", "mean", "std")]
            values = [f"{value:.4g}" for value in (ends[0], *middle, *ends[1:])]
            head = (key, f"{column.dtype} {shape}") if i == 0 else ("", "")
            yield (*head, *values)
