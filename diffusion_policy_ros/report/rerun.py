"""Episodes, and what a policy predicts over them, in the Rerun viewer (https://rerun.io).

Each episode has entities of its own and a tab, on two time lines: ``stamp``, the recording's own,
and ``frame``, counted from its first one.

    episode_0/observation/KEY           a picture as it is kept; a vector as one series a component
    episode_0/action/FIELD              what was commanded, as converted
    episode_0/predicted/FIELD/0, 1 ...  chunks at the times that they are of, in as many turns as
                                        overlap, so that none hides another
    episode_0/space/KEY, .../KEY/way    a position; all of them
    episode_0/space/action/FIELD        where the action of a frame leads to
    episode_0/space/predicted/FIELD     where those of the newest chunk lead to, and beside it
    episode_0/space/demonstrated/FIELD  where as many commanded ones do
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy_ros.atomic import replacing
from diffusion_policy_ros.contract import ActionField, Contract, Stream
from diffusion_policy_ros.data.dataset import Dataset
from diffusion_policy_ros.data.formats import needed
from diffusion_policy_ros.data.pictures import as_they_came, encoded, storage
from diffusion_policy_ros.errors import UserError, first_line
from diffusion_policy_ros.observe.codecs import Array
from diffusion_policy_ros.observe.history import Frame, History
from diffusion_policy_ros.observe.images import PNG
from diffusion_policy_ros.replay.figures import done_from
from diffusion_policy_ros.replay.reading import Replayed, See, read_episode
from diffusion_policy_ros.runtime.tail import Chunk

SUFFIX = ".rrd"
INTO_A_FILE = f"write a file to open elsewhere: --rerun FILE{SUFFIX}"
COLOURS = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0)]
"""Of a vector's components, in turns; what is predicted has those of what was commanded."""
SEEN, DONE, PREDICTED = (0, 114, 178), (150, 150, 150), (213, 94, 0)
COMPARABLE = {
    "position": "position",
    "quaternion": "orientation",
    "joint_position": "joint_position",
}
"""Kind of a field → quantity of its state, where both are drawn in one plot."""

When = tuple[Array, Array]
"""Numbers of frames, and their times, ns: both (n,)."""
PathOf = Callable[..., str]


@contextmanager
def opened(file: str) -> Iterator[View]:
    """What the viewer shows, or will show.

    Args:
        file: is written, and there when it is whole; where empty, the viewer is opened.

    Raises:
        UserError: Rerun is not installed, there is no screen, or the file cannot be written.
    """
    if file:
        _check_name(Path(file))
    os.environ.setdefault("RUST_LOG", "off")  # what goes wrong is said below, once
    rerun = needed("rerun", "view")
    stream = rerun.RecordingStream("diffusion_policy_ros")
    if not file:
        yield from _shown(View(rerun, stream))
        return
    with replacing(Path(file)) as part:
        with _refusals(file, "make room, or choose another path"):
            stream.save(part)
        view = View(rerun, stream)
        yield view
        with _refusals(file, "make room, or choose another path"):
            view.finish()
            stream.disconnect()


def _shown(view: View) -> Iterator[View]:
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}:
        raise UserError("there is no screen for the viewer", "--rerun", INTO_A_FILE)
    folders = (os.environ.get("PATH", ""), str(Path(sys.executable).parent))
    os.environ["PATH"] = os.pathsep.join(folders)  # pip puts the viewer beside Python
    with _refusals("--rerun", INTO_A_FILE):
        view.stream.spawn()
    yield view
    with _refusals("--rerun", INTO_A_FILE):
        view.finish()


def _check_name(path: Path) -> None:
    if path.suffix != SUFFIX:  # which the viewer goes by; and no bag is ever written over
        raise UserError("is no name for a Rerun recording", str(path), f"end it in {SUFFIX}")
    if path.is_dir():
        raise UserError("is a directory", str(path), "choose another name")
    if not path.absolute().parent.is_dir():
        raise UserError("there is no such directory", str(path.parent), "make it first")


@contextmanager
def _refusals(where: str, cure: str) -> Iterator[None]:
    """What Rerun cannot do, as a user's error."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"rerun says: {first_line(error)}", where, cure) from None


class View:
    """Takes episodes.

    Args:
        rr: the module ``rerun``.
        stream: where they go.
    """

    def __init__(self, rr: Any, stream: Any) -> None:
        self.stream, self._rr, self._tabs = stream, rr, list[Any]()

    def add_episode(self, dataset: Dataset, number: int, one: Replayed) -> None:
        """Add an episode of a dataset, as it was read or replayed."""
        line, first = dataset.lines[number], dataset.first_row(number)
        for key, stream in dataset.contract.observations.items():
            for frame, time_ns in enumerate(one.times_ns if stream.is_image else ()):
                self._add_picture(line, key, _kept(dataset, key, first + frame), frame, time_ns)
        self._add(line, dataset.episodes[number].source, one, dataset.contract)

    def add_episodes(self, dataset: Dataset, numbers: Sequence[int]) -> None:
        """Add episodes of a dataset as they were recorded."""
        for number in numbers:
            self.add_episode(dataset, number, read_episode(dataset, number))

    def sees(self, number: int) -> See:
        """What takes the pictures of a bag, called with each frame while the bag is read."""

        def see(frame: int, event: Frame, history: History) -> None:
            for key, stream in history.contract.observations.items():
                if stream.is_image:
                    came = as_they_came(stream, history.message(key, event))
                    picture = _small(stream, came, event.arrays[key])
                    self._add_picture(number, key, picture, frame, event.time_ns)

        return see

    def add_bag(self, number: int, one: Replayed, contract: Contract) -> None:
        """Add all of a bag but its pictures."""
        self._add(number, one.name, one, contract)

    def finish(self) -> None:
        """Say which views there are, and hand on all that was added."""
        from rerun import blueprint

        layout = blueprint.Blueprint(blueprint.Tabs(*self._tabs), collapse_panels=True)
        self._rr.send_blueprint(layout, recording=self.stream)
        self.stream.flush()

    def _path(self, number: int, *parts: str) -> str:
        return str(self._rr.new_entity_path([f"episode_{number}", *parts]))

    def _log(self, path: str, what: Any, frame: int, time_ns: int) -> None:
        self.stream.set_time("frame", sequence=frame)
        self.stream.set_time("stamp", timestamp=np.datetime64(time_ns, "ns"))
        self.stream.log(path, what)

    def _add_picture(
        self, number: int, key: str, picture: Array | bytes, frame: int, time_ns: int
    ) -> None:
        if isinstance(picture, bytes):
            kind = "image/png" if picture.startswith(PNG) else "image/jpeg"
            shown = self._rr.EncodedImage(contents=picture, media_type=kind)
        else:
            shown = self._rr.Image(picture)
        self._log(self._path(number, "observation", key), shown, frame, time_ns)

    def _add(self, number: int, name: str, one: Replayed, contract: Contract) -> None:
        path = partial(self._path, number)
        when = np.arange(len(one.times_ns)), np.array(one.times_ns, np.int64)
        for key, values in one.states.items():
            stream = contract.observations[key]
            names = stream.names or [f"{key}.{i}" for i in range(values.shape[1])]
            self._series(path("observation", key), when, values, names)
            if stream.quantity == "position":
                self._points(path("space", key), when, values, SEEN)
                ways = np.split(values, np.flatnonzero(np.diff(one.segment)) + 1)
                line = self._rr.LineStrips3D(ways, colors=SEEN)
                self.stream.log(path("space", key, "way"), line, static=True)
        for part in contract.action.fields:
            place = contract.action.slices[part.name]
            names = contract.action_names[place]
            self._series(path("action", part.name), when, one.done[:, place], names)
            for turn, chunks in enumerate(_turns(one)):
                where = path("predicted", part.name, str(turn))
                self._series(where, *_joined(chunks, place), names, predicted=True)
            if part.role == "position":
                self._add_ways(path, when, one, part, place)
        role = "" if one.role == "unknown" else f", {one.role}"
        self._tabs.append(_tab(f"{number}: {name}{role}", path, contract))

    def _add_ways(
        self, path: PathOf, when: When, one: Replayed, part: ActionField, place: slice
    ) -> None:
        """Where actions lead to: deltas from where the arm is, all of a chunk's from its frame."""
        starts = np.zeros((len(one.done), 3))
        if part.is_delta and part.state:
            starts = one.states[part.state]
        self._points(path("space", "action", part.name), when, starts + one.done[:, place], DONE)
        for frame, chunk in one.chunks.items():
            done = done_from(one, frame, len(chunk.actions))
            for kind, actions, colour in (
                ("predicted", chunk.actions, PREDICTED),
                ("demonstrated", done, DONE),
            ):
                steps = actions[np.isfinite(actions).all(axis=1), place]
                way = starts[frame] + (np.cumsum(steps, axis=0) if part.is_delta else steps)
                line = self._rr.LineStrips3D([way], colors=colour)
                self._log(path("space", kind, part.name), line, frame, chunk.stamp_ns)

    def _series(
        self, path: str, when: When, values: Array, names: Sequence[str], predicted: bool = False
    ) -> None:
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
        style = self._rr.SeriesLines(names=names, colors=colours)
        if predicted:
            names = [f"{name} predicted" for name in names]
            style = self._rr.SeriesPoints(names=names, colors=colours)
        self._send(path, when, values, style, lambda v: self._rr.Scalars.columns(scalars=v))

    def _points(self, path: str, when: When, values: Array, colour: tuple[int, ...]) -> None:
        radius = self._rr.Radius.ui_points(5)
        style = self._rr.Points3D.from_fields(colors=colour, radii=radius)
        self._send(path, when, values, style, lambda v: self._rr.Points3D.columns(positions=v))

    def _send(
        self, path: str, when: When, values: Array, style: Any, columns: Callable[[Array], Any]
    ) -> None:
        """Values of many frames, without those that are not known."""
        known = np.isfinite(values).all(axis=1)
        frames, stamps = when[0][known], when[1][known].astype("datetime64[ns]")
        index = (
            self._rr.TimeColumn("frame", sequence=frames),
            self._rr.TimeColumn("stamp", timestamp=stamps),
        )
        self.stream.log(path, style, static=True)
        self.stream.send_columns(path, index, columns(values[known]))


def _kept(dataset: Dataset, key: str, row: int) -> Array | bytes:
    """A picture as the dataset keeps it; one of a video decoded, for it is of those before it."""
    rows = dataset.rows[key]
    if rows.how(row) != "video":
        return rows.kept(row)
    return _small(dataset.contract.observations[key], None, rows.take(np.array([row]))[0])


def _small(stream: Stream, came: bytes | None, image: Array) -> Array | bytes:
    """A picture as a dataset would keep it: as it came, or encoded, where it is large."""
    how = storage(stream)
    return image if how == "raw" else came or encoded(image, how)


def _turns(one: Replayed) -> list[list[tuple[int, Chunk]]]:
    """The chunks and their frames, dealt out so that no two of a turn are of the same time."""
    turns: list[list[tuple[int, Chunk]]] = []
    ends: list[int] = []
    for frame, chunk in one.chunks.items():
        turn = next((n for n, end in enumerate(ends) if end <= frame), len(ends))
        if turn == len(ends):
            turns.append([])
            ends.append(0)
        turns[turn].append((frame, chunk))
        ends[turn] = frame + len(chunk.actions)
    return turns


def _joined(chunks: Sequence[tuple[int, Chunk]], place: slice) -> tuple[When, Array]:
    """One part of all actions of chunks, and when they are meant."""
    steps = [np.arange(len(chunk.actions)) for _, chunk in chunks]
    pairs = list(zip(chunks, steps, strict=True))
    frames = np.concatenate([frame + step for (frame, _), step in pairs])
    times = np.concatenate([chunk.stamp_ns + step * chunk.period_ns for (_, chunk), step in pairs])
    return (frames, times), np.concatenate([chunk.actions[:, place] for _, chunk in chunks])


def _tab(title: str, path: PathOf, contract: Contract) -> Any:
    """An episode's views: what was seen, and the space; what was done; the other observations."""
    from rerun import blueprint as views

    actions, pictures, others, streams = [], [], [], dict(contract.observations)
    for part in contract.action.fields:
        contents = [path("action", part.name), path("predicted", part.name) + "/**"]
        state = streams.get(part.state)
        if state is not None and state.quantity == COMPARABLE.get(part.kind):
            contents.append(path("observation", part.state))
            del streams[part.state]
        actions.append(views.TimeSeriesView(origin=path(), contents=contents, name=part.name))
    for key, stream in streams.items():
        where = {"origin": path("observation", key), "name": key}
        if stream.is_image:
            pictures.append(views.Spatial2DView(**where))
        else:
            others.append(views.TimeSeriesView(**where))
    space = views.Spatial3DView(origin=path("space"), name="space")
    columns = ([*pictures, space], actions, others)
    return views.Horizontal(*[views.Vertical(*one) for one in columns if one], name=title)
