"""`diffusion-policy data`: look at a dataset's episodes, choose among them, and put them in order.

Nothing is lost before `compact`: what is dropped stays where it is, and every edit can be undone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy_ros.cli.export import add_export
from diffusion_policy_ros.cli.figures import check_page, check_seed
from diffusion_policy_ros.cli.view import add_rerun, viewing
from diffusion_policy_ros.errors import UserError

if TYPE_CHECKING:
    from diffusion_policy_ros.data.compaction import Written
    from diffusion_policy_ros.data.index import Episode

HEADS = ("no.", "source", "frames", "success", "task", "tags", "split", "weight", "")
WHERE = "such as 'success=true, tag=clean, task=pick*, source=a*, frames>=50'"
SUCCESS = {"true": True, "false": False, "unknown": None}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, with one action for each thing to do."""
    parser = subparsers.add_parser(
        "data", help="show, choose, tag, split and merge episodes", description=__doc__
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_looking(actions)
    _add_edits(actions)
    _add_rewriting(actions)
    add_export(actions)


def _add_looking(actions: Any) -> None:
    listed = _add(actions, "list", _list, "one line an episode")
    listed.add_argument("--dropped", action="store_true", help="those that are dropped, too")
    show = _add(actions, "show", _show, "write one HTML page: pictures, plots, what looks odd")
    show.add_argument("--out", type=Path, metavar="FILE", help="the page (default: DATASET.html)")
    show.add_argument(
        "--most", type=int, default=50, metavar="N", help="at most so many are drawn (default 50)"
    )
    add_rerun(show)


def _add_edits(actions: Any) -> None:
    tag = _add(actions, "tag", _tag, "say something of episodes: tags, task, success, weight")
    tag.add_argument("tags", nargs="*", metavar="TAG", help="a word to choose them by")
    tag.add_argument("--remove", action="store_true", help="take these tags away")
    tag.add_argument("--task", metavar="TEXT", help="what was done")
    tag.add_argument("--success", choices=tuple(SUCCESS), help="whether it succeeded")
    tag.add_argument("--weight", type=float, metavar="W", help="how often it is drawn; 1 is usual")
    _add(actions, "drop", _drop, "leave episodes out, until they are kept again")
    _add(actions, "keep", _keep, "take dropped episodes back")
    split = _add(actions, "split", _split, "say what episodes are for")
    split.add_argument("name", metavar="SPLIT", help="held_out, train, or a name of your own")
    split.add_argument("--share", type=float, metavar="S", help="a share of the recordings only")
    split.add_argument("--seed", type=int, default=0, help="which of them (default 0)")
    undo = actions.add_parser("undo", help="take the last edit back")
    undo.add_argument("dataset", metavar="DATASET", type=Path)
    undo.set_defaults(run=_undo)


def _add_rewriting(actions: Any) -> None:
    compact = actions.add_parser(
        "compact", help="remove for good what is dropped or trimmed; old or new, never half"
    )
    compact.add_argument("dataset", metavar="DATASET", type=Path)
    compact.set_defaults(run=_compact)
    merge = actions.add_parser("merge", help="several datasets of one meaning as one")
    merge.add_argument("dataset", metavar="DATASET", type=Path, nargs="+")
    merge.add_argument("--out", type=Path, required=True, metavar="DATASET", help="the new one")
    merge.add_argument("--where", default="", metavar="CONDITIONS", help=f"only these, {WHERE}")
    merge.set_defaults(run=_merge)
    for one in (compact, merge):
        one.add_argument(
            "--images",
            choices=("auto", "raw", "jpeg", "png", "video"),
            help="how pictures are kept from now on that are raw or video, or with video all in "
            "colour (default: as they are)",
        )


def _add(actions: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
    """An action on some of a dataset's episodes."""
    action = actions.add_parser(name, help=text)
    action.add_argument("dataset", metavar="DATASET", type=Path)
    action.add_argument("--where", default="", metavar="CONDITIONS", help=f"only these, {WHERE}")
    action.add_argument(
        "--episodes", type=int, nargs="+", default=[], metavar="N", help="only these numbers"
    )
    action.set_defaults(run=run)
    return action


def _list(args: argparse.Namespace) -> int:
    from diffusion_policy_ros.data.edits import chosen
    from diffusion_policy_ros.data.index import Index
    from diffusion_policy_ros.report.table import table

    numbers = chosen(args.dataset, args.where, args.episodes, None if args.dropped else False)
    episodes = Index.load(args.dataset).episodes
    print("\n".join(table(HEADS, [row(n, episodes[n]) for n in numbers])))
    print(f"{len(numbers)} episodes, {sum(episodes[n].frames for n in numbers)} frames")
    return 0


def row(number: int, episode: Episode) -> tuple[str, ...]:
    """An episode's line."""
    return (
        str(number),
        episode.source,
        str(episode.frames),
        {True: "yes", False: "no", None: "?"}[episode.success],
        episode.task,
        " ".join(episode.tags),
        episode.split,
        f"{episode.weight:g}",
        "dropped" if episode.dropped else "",
    )


def _show(args: argparse.Namespace) -> int:
    from diffusion_policy_ros.data.dataset import Dataset
    from diffusion_policy_ros.data.edits import chosen
    from diffusion_policy_ros.report.data_page import write_data_page

    out = args.out or Path(f"{args.dataset.absolute()}.html")
    check_page(args.out)
    with viewing(args) as view:
        lines = chosen(args.dataset, args.where, args.episodes)
        dataset = Dataset(args.dataset)
        found, drawn = write_data_page(out, dataset, lines, args.most)
        print("\n".join(found) or "nothing looks odd")
        print(f"page      {out}")
        if view:
            view.add_episodes(dataset, drawn)
    return 0


def _edited(
    args: argparse.Namespace,
    change: Callable[[Episode], Episode],
    said: str,
    choose: Callable[[], list[int]] | None = None,
) -> int:
    from diffusion_policy_ros.data.edits import chosen, edit

    usual = partial(chosen, args.dataset, args.where, args.episodes)
    count, among = edit(args.dataset, said, choose or usual, change)
    print(f"{said}: {count} of {among} episodes changed")
    return 0


def _tag(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from diffusion_policy_ros.data.edits import checked_tags, checked_text

    tags = checked_tags(args.tags)
    checked_text(args.task or "")
    given = {"task": args.task, "weight": args.weight}
    values = {name: value for name, value in given.items() if value is not None}
    values |= {} if args.success is None else {"success": SUCCESS[args.success]}
    if not tags and not values:
        cure = "give a tag, --task, --success or --weight"
        raise UserError("nothing to say of them", "data tag", cure)
    if args.weight is not None and not 0 <= args.weight <= 1e6:
        raise UserError(f"{args.weight}", "--weight", "use 0 or more; 1 is usual")

    def change(episode: Episode) -> Episode:
        kept = tuple(tag for tag in episode.tags if tag not in tags)
        return replace(episode, tags=kept if args.remove else (*kept, *tags), **values)

    words = [*tags, *(f"{name} {value}" for name, value in values.items())]
    return _edited(args, change, f"{'untag' if args.remove else 'tag'} {', '.join(words)}")


def _drop(args: argparse.Namespace) -> int:
    from dataclasses import replace

    if not args.where and not args.episodes:
        raise UserError("all of them would be dropped", "data drop", "give --where or --episodes")
    return _edited(args, lambda episode: replace(episode, dropped=True), "drop")


def _keep(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from diffusion_policy_ros.data.edits import chosen

    choose = partial(chosen, args.dataset, args.where, args.episodes, dropped=True)
    return _edited(args, lambda episode: replace(episode, dropped=False), "keep", choose)


def _split(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from diffusion_policy_ros.data.edits import checked_text, chosen, share_of

    checked_text(args.name)
    check_seed(args.seed)
    if args.share is not None and not 0 < args.share < 1:
        raise UserError(f"{args.share}", "--share", "use a number between 0 and 1")

    def choose() -> list[int]:
        numbers = chosen(args.dataset, args.where, args.episodes)
        whole = args.share is None
        return numbers if whole else share_of(args.dataset, numbers, args.share, args.seed)

    said = f"split {args.name}"
    return _edited(args, lambda episode: replace(episode, split=args.name), said, choose)


def _undo(args: argparse.Namespace) -> int:
    from diffusion_policy_ros.data.edits import undo

    print(f"undone: {undo(args.dataset)}")
    return 0


def _compact(args: argparse.Namespace) -> int:
    from diffusion_policy_ros.data.compaction import compact

    print("\n".join(_told(args.dataset, compact(args.dataset, args.images))))
    return 0


def _merge(args: argparse.Namespace) -> int:
    from diffusion_policy_ros.data.compaction import merge

    written = merge(args.dataset, args.out, args.where, args.images)
    print("\n".join(_told(args.out, written)))
    return 0


def _told(folder: Path, written: Written) -> Iterator[str]:
    yield f"{folder} holds {written.episodes} episodes, {written.frames} frames"
    yield f"{written.bytes / 1e6:.1f} MB; before {written.bytes_before / 1e6:.1f} MB"
