"""Which foreign elements are which of a contract: by name, else as the user says, never guessed.

    KEY=COLUMN          the whole column, in its order
    KEY=COLUMN[2:5]     some of its elements
    KEY=COLUMN[3:6]:axis_angle      a rotation as it is written there

KEY is an observation, ``action``, or ``action.FIELD``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.data.formats.demonstrations import Column
from diffusion_policy_ros.data.formats.naming import action_names, observed_names, plain
from diffusion_policy_ros.data.shards import ACTION, STAMP
from diffusion_policy_ros.errors import UserError, UserErrors, did_you_mean, names_said
from diffusion_policy_ros.policy.rotations import TO_QUATERNION

_GIVEN = re.compile(
    r"(?P<column>[^\[\]]+?)(\[(?P<first>\d+)(:(?P<last>\d+))?\])?(:(?P<turn>\w+))?"
)
_ACTIONS = ("action", "actions")
SUCCESS = "next.success"
"""The column that says whether an episode succeeded, as LeRobot has it."""
KEPT = (STAMP, SUCCESS)
"""Columns that are taken without being asked for."""
WHOLE = -1
"""The place of a picture in its column."""


@dataclass(frozen=True)
class Source:
    """Where a key comes from.

    Attributes:
        elements: (column, place in it) of each element; of a picture its column and `WHOLE`.
        turn: how a rotation is written there, a key of TO_QUATERNION; empty where as it is here.
        how: by what it was found.
    """

    elements: tuple[tuple[str, int], ...]
    turn: str = ""
    how: str = "by name"

    @property
    def columns(self) -> list[str]:
        """The columns, each once."""
        return list(dict.fromkeys(column for column, _ in self.elements))

    def said(self) -> str:
        """Its columns, with the places in them."""
        parts = []
        for column in self.columns:
            places = [place for name, place in self.elements if name == column]
            parts.append(f"{column}{_places(places)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Matching:
    """Where all that a contract asks for comes from.

    Attributes:
        observations: key → source.
        action: its source; None where it is derived from the next state.
    """

    observations: dict[str, Source]
    action: Source | None

    @property
    def columns(self) -> set[str]:
        """All columns that are read."""
        found = [*self.observations.values(), *([self.action] if self.action else [])]
        return {column for source in found for column in source.columns}

    def unused(self, columns: Mapping[str, Column]) -> Iterator[str]:
        """What of a foreign dataset is left out."""
        taken = {e for s in self.observations.values() for e in s.elements}
        taken |= set(self.action.elements if self.action else ())
        for name, column in columns.items():
            places = [WHOLE] if column.is_image else list(range(column.shape[0]))
            left = [i for i in places if (name, i) not in taken]
            if name in KEPT:
                continue
            if len(left) == len(places):
                yield name
            elif left:
                yield ", ".join(column.names[i] if column.names else f"{name}[{i}]" for i in left)


def match(
    contract: Contract,
    columns: Mapping[str, Column],
    given: Sequence[str] = (),
    ours: bool = False,
) -> Matching:
    """Find every observation and the action of a contract.

    Args:
        contract: the robot.
        columns: what the foreign dataset has.
        given: what the user says of some keys; see the module.
        ours: whether it was exported from a dataset of this contract, so that there is an action
            even where the contract derives it.

    Raises:
        UserErrors: what is not there or does not fit, each with what to say of it.
    """
    finder = _Finder(contract, columns)
    finder.take_given(given)
    for key, stream in contract.observations.items():
        if key not in finder.found:
            finder.find(key, stream)
    derived = contract.action.record == "next_state" and not ours and not finder.action_given
    action = None if derived else finder.action()
    if finder.problems:
        raise UserErrors(finder.problems)
    return Matching({key: finder.found[key] for key in contract.observations}, action)


class _Finder:
    """Looks for keys in columns; collects what is wrong."""

    def __init__(self, contract: Contract, columns: Mapping[str, Column]) -> None:
        self.contract, self.columns = contract, columns
        self.found: dict[str, Source] = {}
        self.problems: list[UserError] = []
        self._fields = {f"{ACTION}.{part.name}": part for part in contract.action.fields}
        self._names, self._parts = observed_names(contract), action_names(contract)
        elements = [
            (name, place, element)
            for name, column in columns.items()
            if not column.is_image
            for place, element in enumerate(column.names)
        ]
        self._observed = [e for e in elements if e[0] not in _ACTIONS]
        self._commanded = [e for e in elements if e[0] in _ACTIONS]

    @property
    def action_given(self) -> bool:
        """Whether the user says where the action, or a field of it, comes from."""
        return any(key in self.found for key in (ACTION, *self._fields))

    def take_given(self, given: Sequence[str]) -> None:
        """Note what the user says."""
        known = {ACTION, *self.contract.observations, *self._fields}
        for text in given:
            key, _, told = text.partition("=")
            parsed = _GIVEN.fullmatch(told)
            if key not in known or parsed is None:
                cure = (
                    did_you_mean(key, known) if parsed else "write KEY=COLUMN or KEY=COLUMN[0:7]"
                )
                self.problems.append(UserError(f"'{text}' says nothing", "--map", cure))
                continue
            try:
                self.found[key] = self._given(key, parsed)
            except UserError as error:
                self.problems.append(error)

    def _given(self, key: str, told: re.Match[str]) -> Source:
        name, turn = told["column"], told["turn"] or ""
        column = self.columns.get(name)
        if column is None:
            cure = did_you_mean(name, self.columns)
            raise UserError(f"there is no column '{name}'", f"--map {key}", cure)
        if turn and turn not in TO_QUATERNION:
            cure = did_you_mean(turn, TO_QUATERNION)
            raise UserError(f"'{turn}' is no way to write a rotation", f"--map {key}", cure)
        first = int(told["first"] or 0)
        size = 1 if column.is_image else column.shape[0]
        last = int(told["last"]) if told["last"] else first + 1 if told["first"] else size
        stream = self.contract.observations.get(key)
        is_image = stream is not None and stream.is_image
        if is_image != column.is_image:
            what = f"{name} is {'a picture' if column.is_image else 'no picture'}"
            raise UserError(what, f"--map {key}", "name another column")
        if is_image:
            return Source(((name, WHOLE),), how="as told")
        needed = self._needed(key, turn)
        if last > size or last - first != needed:
            what = f"{told[0]} is {max(min(last, size) - first, 0)} elements, {key} has {needed}"
            raise UserError(what, f"--map {key}", f"{name} has elements 0 to {size - 1}")
        return Source(tuple((name, place) for place in range(first, last)), turn, "as told")

    def _needed(self, key: str, turn: str) -> int:
        """How many elements a key has, as a rotation is written."""
        sizes = {"axis_angle": 3, "quaternion": 4, "rotation_6d": 6}
        if turn:
            return sizes[turn]
        if key in self.contract.observations:
            return self.contract.observations[key].size
        return self._fields[key].size if key in self._fields else self.contract.action_dim

    def find(self, key: str, stream: Stream) -> None:
        """Look for an observation."""
        source = self._picture(key, stream) if stream.is_image else self._vector(key, stream)
        if isinstance(source, UserError):
            self.problems.append(source)
        else:
            self.found[key] = source

    def _picture(self, key: str, stream: Stream) -> Source | UserError:
        pictures = [name for name, column in self.columns.items() if column.is_image]
        fitting = [n for n in pictures if n in (key, f"observation.images.{key}")] or [
            n for n in pictures if plain(n) == plain(key)
        ]
        if len(fitting) == 1:
            return Source(((fitting[0], WHOLE),))
        what = f"no camera is called '{key}'; there is {names_said(pictures) or 'none'}"
        if not pictures:
            return UserError(what, "", "leave it out of the contract")
        near = _near(key, pictures)
        return UserError(what, "", f"say which it is: --map {key}={near}")

    def _vector(self, key: str, stream: Stream) -> Source | UserError:
        # A bare joint's name is its position.
        joints = stream.names if stream.quantity == "joint_position" else ()
        by_name = self._by_names(self._names[key], joints, self._observed)
        if by_name is not None:
            return by_name
        vectors = {
            name: column
            for name, column in self.columns.items()
            if not column.is_image and name not in _ACTIONS
        }
        same = [n for n in vectors if n == key] or [n for n in vectors if plain(n) == plain(key)]
        if len(same) == 1 and not (stream.names and vectors[same[0]].names):
            size = vectors[same[0]].shape[0]
            turn = _turn(same[0], stream, size)
            if size == stream.size or turn:
                return Source(tuple((same[0], i) for i in range(size)), turn)
        if source := self._by_place(stream, vectors):
            return source
        names = [element for _, _, element in self._observed] or list(vectors)
        missing = [n for n in self._names[key] if n not in names]
        what = (
            f"{key} is not there: no {names_said(missing)} among {names_said(names) or 'nothing'}"
        )
        near = _near(key, vectors)
        return UserError(what, "", f"say where it is: --map {key}={near}[0:{stream.size}]")

    def _by_place(self, stream: Stream, vectors: Mapping[str, Column]) -> Source | None:
        """The only vector of the contract is the only one of the dataset, whose elements have no
        names.
        """
        own = [s for s in self.contract.observations.values() if not s.is_image]
        states = [n for n in vectors if plain(n) in ("state", "qpos", "environment_state")]
        if len(own) != 1 or len(states) != 1 or vectors[states[0]].names:
            return None
        if vectors[states[0]].shape != (stream.size,):
            return None
        return Source(tuple((states[0], i) for i in range(stream.size)), how="by place")

    def _by_names(
        self, names: Sequence[str], joints: Sequence[str], elements: list[tuple[str, int, str]]
    ) -> Source | None:
        """Elements of these names; joints are also found without what follows their name."""
        chosen = []
        for i, name in enumerate(names):
            asked = [name, joints[i]] if i < len(joints) else [name]
            fitting = [(c, p) for c, p, element in elements if element in asked] or [
                (c, p)
                for c, p, element in elements
                if joints and plain(element) == plain(asked[-1])
            ]
            if len(fitting) != 1:
                return None
            chosen.append(fitting[0])
        return Source(tuple(chosen)) if chosen else None

    def action(self) -> Source | None:
        """Where the action comes from; what is wrong is noted."""
        if ACTION in self.found:
            return self.found[ACTION]
        if self.action_given:
            return self._of_fields()
        names = [name for own in self._parts.values() for name in own]
        joints = self.contract.action_names
        by_name = self._by_names(names, joints, self._commanded)
        if by_name is not None:
            return by_name
        present = [name for name in _ACTIONS if name in self.columns]
        if not present:
            cure = "write record: next_state and each field's state in the contract"
            self.problems.append(UserError("there is no action", "", cure))
            return None
        column, size = self.columns[present[0]], self.contract.action_dim
        recorded = sum(part.size for part in self.contract.action.recorded)
        if not column.names and column.shape[0] in (size, recorded):
            places = tuple((present[0], i) for i in range(column.shape[0]))
            return Source(places, how="by place")
        self.problems.append(self._other_action(present[0], names))
        return None

    def _other_action(self, name: str, names: Sequence[str]) -> UserError:
        column, size = self.columns[name], self.contract.action_dim
        said = names_said(column.names) or f"{column.shape[0]} numbers"
        what = f"its action is {said}; the contract's {names_said(names)}"
        if column.shape[0] == size:
            return UserError(what, "", f"say that they are the same in order: --map action={name}")
        first = self.contract.action.fields[0]
        cure = f"say where each field is: --map action.{first.name}={name}[0:{first.size}] ..."
        return UserError(what, "", cure)

    def _of_fields(self) -> Source | None:
        """Field by field, as the user says."""
        elements: list[tuple[str, int]] = []
        for name, part in self._fields.items():
            source = self.found.get(name)
            if source is None:
                source = self._by_names(self._parts[part.name], (), self._commanded)
            if source is None:
                cure = f"say where it is: --map {name}=COLUMN[0:{part.size}]"
                self.problems.append(UserError(f"{name} is not there", "", cure))
            elif source.turn:
                cure = "give the contract's field this kind"
                self.problems.append(UserError("an action is not turned", f"--map {name}", cure))
            else:
                elements += source.elements
        return Source(tuple(elements), how="as told")


def _turn(column: str, stream: Stream, size: int) -> str:
    """How an orientation is written, by its column's name."""
    if stream.quantity != "orientation" or size == stream.size:
        return ""
    if size == 3 and re.search(r"axis_angle|rotvec", column):
        return "axis_angle"
    return "rotation_6d" if size == 6 and "6d" in column else ""


def _near(key: str, names: Mapping[str, Column] | Sequence[str]) -> str:
    """The likeliest of some names."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else "COLUMN"


def _places(places: Sequence[int]) -> str:
    if places[0] == WHOLE:
        return ""
    if list(places) == list(range(places[0], places[0] + len(places))):
        last = places[-1]
        return f"[{places[0]}]" if len(places) == 1 else f"[{places[0]}:{last + 1}]"
    return f"[{','.join(map(str, places))}]"
