"""What a pickle says, read without doing it.

A pickle is a program: it names functions and has them called. This reads its instructions with
`pickletools.genops`, which only takes them apart, and carries out those that build data. A name in
it stays a name: nothing is imported, looked up or called. Objects become `Made`, which hold what
they were to be made of.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffusion_policy_ros.errors import UserError

LONGEST = 64 << 20
"""Bytes of the longest pickle that is read; a checkpoint's is of a few hundred kilobytes."""


class Name(NamedTuple):
    """A function or class that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Made:
    """An object that a pickle wants made.

    Attributes:
        of: the class or function that was to make it.
        arguments: what that was to be given.
        state: what it was to be filled with, `None` where nothing was.
        items: keys and values that were to be set on it.
    """

    of: Name
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


Makers = dict[Name, Callable[..., Any]]
_MARK = object()


class _Machine:
    """A stack and a memory."""

    def __init__(
        self, makers: Makers, is_harmless: Callable[[Name], bool], persistent: Callable[[Any], Any]
    ) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.makers, self.is_harmless, self.persistent = makers, is_harmless, persistent

    def pop_to_mark(self) -> list[Any]:
        """What lies above the newest mark, which goes, too."""
        last = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        found = self.stack[last + 1 :]
        del self.stack[last:]
        return found

    def named(self, module: Any, name: Any) -> Name:
        """A name, if it is one that checkpoints have."""
        found = Name(module, name)
        if not (isinstance(module, str) and isinstance(name, str) and self.is_harmless(found)):
            raise UserError(f"its pickle names {found}", cure=_UNKNOWN)
        return found

    def make(self, of: Any, arguments: Any) -> Any:
        """What an own maker makes, or an inert object."""
        if not isinstance(of, Name) or not isinstance(arguments, tuple):
            raise ValueError("calls what is no name")
        maker = self.makers.get(of)
        return maker(*arguments) if maker else Made(of, arguments)

    def set_items(self, target: Any, pairs: Sequence[Any]) -> None:
        """Set keys of a dict, or of an object that is like one."""
        items = target.items if isinstance(target, Made) else target
        if not isinstance(items, dict) or len(pairs) % 2:
            raise ValueError("sets items of what has none")
        items.update(zip(pairs[::2], pairs[1::2], strict=True))

    def extend(self, target: Any, values: Sequence[Any]) -> None:
        """Append to a list, or add to a set."""
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(values)
        else:
            raise ValueError("extends what is no list")


_UNKNOWN = (
    "it is not executed, but no checkpoint needs that: do not load this file with torch.load, "
    "and get it from somebody you trust"
)
_DATA = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[int(index)] = machine.stack[-1]


def _get(machine: _Machine, index: Any) -> None:
    machine.stack.append(machine.memo[int(index)])


def _tuple(size: int) -> Callable[[_Machine, Any], None]:
    def gather(machine: _Machine, _: Any) -> None:
        if len(machine.stack) < size:
            raise IndexError
        machine.stack[-size:] = [tuple(machine.stack[-size:])]

    return gather


def _of_marked(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make(machine.pop_to_mark()))


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def _global(machine: _Machine, told: Any) -> None:
    module, _, name = told.partition(" ")
    machine.stack.append(machine.named(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.named(module, name))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, of = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.make(of, arguments))


def _new_with_keywords(machine: _Machine, _: Any) -> None:
    keywords, arguments, of = (machine.stack.pop() for _ in range(3))
    if keywords:
        raise ValueError("makes something of keywords")
    machine.stack.append(machine.make(of, arguments))


def _build(machine: _Machine, _: Any) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Made):
        machine.stack[-1].state = state
    # What a plain dict is to be filled with are notes of torch: versions of its modules.


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.extend(machine.stack[-1], [value])


def _extend(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.extend(machine.stack[-1], values)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _set_items(machine: _Machine, _: Any) -> None:
    pairs = machine.pop_to_mark()
    machine.set_items(machine.stack[-1], pairs)


def _persistent(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.persistent(machine.stack.pop()))


def _nothing(machine: _Machine, _: Any) -> None:
    pass


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **{name: lambda machine, value: machine.stack.append(value) for name in _DATA},
    **{name: _constant(make) for name, make in _CONSTANTS.items()},
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "MEMOIZE": _memoize,
    "TUPLE": _of_marked(tuple),
    "LIST": _of_marked(list),
    "DICT": _of_marked(_dict),
    "FROZENSET": _of_marked(frozenset),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "POP": lambda machine, _: machine.stack.__delitem__(-1),
    "POP_MARK": lambda machine, _: machine.pop_to_mark().clear(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "NEWOBJ_EX": _new_with_keywords,
    "BUILD": _build,
    "APPEND": _append,
    "APPENDS": _extend,
    "ADDITEMS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "BINPERSID": _persistent,
}


def read_pickle(
    data: bytes,
    makers: Makers,
    is_harmless: Callable[[Name], bool],
    persistent: Callable[[Any], Any],
) -> Any:
    """What a pickle tells.

    Args:
        data: the pickle.
        makers: name -> our own function, that is given what the named one was to be given.
        is_harmless: whether a name is one that is expected; any other ends the reading.
        persistent: what stands for a persistent id, such as a tensor's storage.

    Raises:
        UserError: it is no pickle, or damaged, or names what no checkpoint needs.
    """
    if len(data) > LONGEST:
        what = f"its pickle has {len(data) >> 20} MiB, more than {LONGEST >> 20}"
        raise UserError(what, cure=_DAMAGED)
    machine = _Machine(makers, is_harmless, persistent)
    try:
        for instruction, value, _ in pickletools.genops(data):
            if instruction.name == "STOP":
                return machine.stack.pop()
            if instruction.name not in _INSTRUCTIONS:
                raise UserError(f"its pickle has the instruction {instruction.name}", cure=_OTHER)
            _INSTRUCTIONS[instruction.name](machine, value)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        told = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise UserError(f"its pickle is damaged: {told}", cure=_DAMAGED) from None
    raise UserError("its pickle has no end", cure=_DAMAGED)


_DAMAGED = "copy the file again"
_OTHER = "load and save it once with the project that wrote it"
