"""Message types: ROS 2's own, those that a bag defines, and those that a contract names."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from diffusion_policy_ros.contract import Contract, Stream
from diffusion_policy_ros.contract.fields import parsed
from diffusion_policy_ros.data.mcap_file import Schema
from diffusion_policy_ros.errors import UserError, did_you_mean, first_line
from diffusion_policy_ros.observe import cdr
from diffusion_policy_ros.observe.codecs import DECODERS
from diffusion_policy_ros.observe.serialized import SerializedMessage, StampedMessage
from diffusion_policy_ros.strict_yaml import Problem

NAME_IT = "name its .msg file as definition: in the contract"
BASE, NAME, ARRAY = 1, 2, 3
"""Kinds of fields, as rosbags numbers them; 4 are sequences."""
NO_SCHEMA = Schema("", "", "")
"""Of messages that do not come from a bag."""
_NAMED: dict[str, str] = {}
"""Type → its definition, of types that nobody else defines."""


@functools.cache
def _standard() -> Any:
    """The message types of ROS 2 Jazzy."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_JAZZY)


def _known(name: str) -> Any:
    """The types among which one is defined: ROS 2's, or with those that were named."""
    return _with_named(name, _NAMED[name]) if name in _NAMED else _standard()


@functools.cache
def _with_named(name: str, text: str) -> Any:
    from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    try:
        found = get_types_from_msg(text, name)
        store.register({k: v for k, v in found.items() if k not in store.fielddefs})
    except (TypesysError, ValueError, KeyError) as error:
        what = f"is no definition of {name} ({first_line(error)})"
        raise UserError(what, "", "give its .msg file") from None
    return store


def name_type(name: str, text: str) -> None:
    """Make a type known by its definition, where neither ROS 2 nor a bag defines it.

    Args:
        name: as ``pkg/msg/Type``.
        text: its ``.msg`` file; what it consists of follows after lines of ``===`` and ``MSG: …``.
    """
    if name not in _standard().fielddefs:
        _NAMED[name] = text


def name_types_of(contract: Contract, but: Collection[str] = ()) -> None:
    """Make known what a contract gives the definitions of.

    Args:
        contract: names files.
        but: types that are known already, as a bag brings the definitions of its own.

    Raises:
        UserError: a file is missing.
    """
    for stream in (*contract.observations.values(), *contract.action.commands):
        if stream.definition and stream.type not in but:
            try:
                name_type(stream.type, Path(stream.definition).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):
                what = f"the definition of {stream.type} cannot be read"
                raise UserError(what, stream.definition, "give its .msg file") from None


def is_known(name: str) -> bool:
    """Whether a type's definition is known, without a bag that has it."""
    return name in _known(name).fielddefs


def message_types(name: str) -> Callable[..., Any]:
    """The class of a message type; takes its fields as keywords.

    Raises:
        UserError: no such type is known.
    """
    types: dict[str, Callable[..., Any]] = _known(name).types
    if name not in types:
        near = difflib.get_close_matches(name, types, n=1, cutoff=0.9)
        cure = f"did you mean '{near[0]}'?" if near else NAME_IT
        raise UserError(f"the message type '{name}' is not known", "", cure)
    return types[name]


def serialize(type_name: str, msg: Any) -> bytes:
    """A message of `message_types` as CDR with its encapsulation."""
    message_types(type_name)
    return bytes(_known(type_name).serialize_cdr(msg, type_name))


@functools.lru_cache(maxsize=256)
def store_for(type_name: str, definition: Schema) -> Any:
    """The types that a bag itself defines; ROS 2 Jazzy's where it defines none."""
    from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

    if not definition.text:
        message_types(type_name)
        return _known(type_name)
    store = get_typestore(Stores.EMPTY)
    if definition.encoding == "ros2msg":
        store.register(get_types_from_msg(definition.text, type_name))
        return store
    bar = "=" * 80 + "\nIDL: "
    for text in definition.text.split(bar)[1:] if bar in definition.text else [definition.text]:
        store.register(
            get_types_from_idl(text.partition("\n")[2] if bar in definition.text else text)
        )
    return store


@functools.lru_cache(maxsize=256)
def maker(type_name: str, definition: Schema) -> Callable[[memoryview], SerializedMessage]:
    """What wraps the bytes of a type."""
    from rosbags.serde import SerdeError
    from rosbags.typesys import TypesysError

    quick = cdr.DECODERS.get(type_name)

    def decode(raw: memoryview) -> dict[str, Any]:
        try:
            if quick is not None and raw[:2] == cdr.PLAIN_LITTLE:
                return quick(raw)
            store = store_for(type_name, definition)
            return dict(vars(store.deserialize_cdr(raw, type_name)))
        except (SerdeError, TypesysError, KeyError, *cdr.ERRORS) as error:
            what = f"{len(raw)} bytes are no {type_name} ({error})"
            raise UserError(what, "", "the bag is damaged") from None

    kind = StampedMessage if is_stamped(type_name, definition) else SerializedMessage
    return functools.partial(kind, decode)


def is_stamped(type_name: str, definition: Schema = NO_SCHEMA) -> bool:
    """Whether a type's messages begin with a header."""
    if definition.encoding == "ros2msg" and definition.text:
        lines = (line.partition("#")[0].split() for line in definition.text.splitlines())
        first = next((words for words in lines if words and "=" not in "".join(words)), [""])
        named = first[1:2] == ["header"]  # as live: under another name it is a field like others
        return named and first[0] in ("std_msgs/Header", "std_msgs/msg/Header", "Header")
    fields = _known(type_name).fielddefs.get(type_name, ([], []))[1]
    return bool(fields) and fields[0][0] == "header"


def definition(type_name: str) -> bytes:
    """A type's ``ros2msg`` text, with the types that it consists of."""
    message_types(type_name)
    text, _ = _known(type_name).generate_msgdef(type_name, ros_version=2)
    return str(text).encode()


def hash_of(type_name: str) -> str:
    """A type's hash, as REP 2011 has it."""
    return str(_known(type_name).hash_rihs01(type_name))


def problems(contract: Contract) -> Iterator[Problem]:
    """What in a contract's paths the definitions do not have, as far as these are known here.

    Raises:
        UserError: a definition's file is missing, or is none.
    """
    name_types_of(contract)
    streams = {f"observations.{key}": stream for key, stream in contract.observations.items()}
    streams |= {f"action.record.{i}": s for i, s in enumerate(contract.action.commands)}
    for key, stream in streams.items():
        known = _known(stream.type).fielddefs
        if stream.type not in known:
            what = f"the definition of {stream.type} is not known here: not checked until it runs"
            yield Problem(f"{key}.type", what, NAME_IT)
        elif stream.tf is None and not stream.is_image and stream.type not in DECODERS:
            what, cure = _path_problem(stream, known)
            if what:
                yield Problem(f"{key}.field", what, cure)


def _path_problem(stream: Stream, known: dict[str, Any]) -> tuple[str, str]:
    """What is wrong with a field's path, and the cure; empty where nothing is."""
    fields, size = dict(known[stream.type][1]), 0
    value: Any = (1, ("", 0))
    for step in parsed(stream.field):
        if step.name not in fields:
            return f"there is no '{step.name}' in it", did_you_mean(step.name, fields)
        value = fields[step.name]
        kind, (inner, size) = int(value[0]), value[1] if int(value[0]) > 2 else (value, 0)
        picked = step.first is not None or bool(step.key)
        if picked and kind < ARRAY:
            return f"{step.name} is no array, so that nothing can be taken of it", "name it alone"
        last = step.last if step.last is not None else (step.first or 0) + 1
        if picked and kind == ARRAY and not step.key and last > size:
            return f"{step.name} has {size} values, not {last}", f"stay below {size}"
        value = inner if picked else value
        fields = dict(known[value[1]][1]) if int(value[0]) == NAME else {}
    return _leaf_problem(stream, value, known)


def _leaf_problem(stream: Stream, value: Any, known: dict[str, Any]) -> tuple[str, str]:
    kind, what = int(value[0]), value[1]
    leaf = value if kind < ARRAY else what[0]
    if int(leaf[0]) == BASE and leaf[1][0] in ("string", "wstring"):
        return f"{stream.field} is text", "name a number"
    size = _size(value, known)
    sliced = parsed(stream.field)[-1].last is not None
    if size and not sliced and stream.shape and stream.size != size:
        return f"{stream.field} has {size} values, not {stream.size}", f"write shape: [{size}]"
    return "", ""


def _size(value: Any, known: dict[str, Any]) -> int:
    """Numbers in a field; 0 where that is not fixed."""
    kind, what = int(value[0]), value[1]
    if kind == BASE:
        return 1
    if kind == NAME:
        sizes = [_size(v, known) for name, v in known[what][1] if name != "header"]
        return sum(sizes) if all(sizes) else 0
    return what[1] * _size(what[0], known) if kind == ARRAY else 0
