"""YAML into frozen dataclasses, with every mistake of a file reported at once.

The dataclass is the schema: its annotations give the types, its defaults what may be left out, and
an optional method ``problems()`` what no type can say. A mistake names its key, its line and the
cure; an unknown key suggests the near one. Contracts and recipes are both read here, so that both
are equally strict.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from typing import Any, Literal, NamedTuple, TypeVar

import yaml

from diffusion_policy_ros.errors import UserError, UserErrors, did_you_mean

T = TypeVar("T")

_SCALARS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_COMMAND_LINE = "command line"
LARGEST = sys.float_info.max


class Problem(NamedTuple):
    """A mistake that types cannot show: at which key (dotted), what, and the cure."""

    key: str
    what: str
    cure: str = ""


def parse(cls: type[T], text: str, where: str, overrides: dict[str, str] | None = None) -> T:
    """Read YAML text as the dataclass ``cls``.

    Args:
        cls: a dataclass whose fields are scalars, tuples, dicts with text keys, or dataclasses of
            the same sort; of a union of dataclasses, the one whose ``name`` is given.
        text: the YAML document.
        where: the file's name, for messages.
        overrides: dotted key → YAML text, as given on a command line; they win over the document.

    Raises:
        UserErrors: every mistake, each with its key, line and cure.
    """
    reader = _Reader(where)
    node = reader.compose(text, cls)
    for key, value in (overrides or {}).items():
        reader.override(node, key, value)
    try:
        result = reader.build(cls, node, "")
    except RecursionError:
        raise UserErrors([UserError("refers to itself", where, "remove the YAML alias")]) from None
    if reader.errors:
        raise UserErrors(sorted(reader.errors, key=reader.line_of))
    return typing.cast(T, result)


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """What a file may give, by name."""
    fields = dataclasses.fields(typing.cast(Any, cls))
    return {f.name: f for f in fields if f.init and not f.metadata.get("derived")}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


class _Reader:
    """Walks YAML nodes beside types; collects mistakes instead of stopping at the first."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.errors: list[UserError] = []
        self.misfits = 0
        self.lines: dict[str, int] = {}
        self.overridden: set[str] = set()

    def compose(self, text: str, cls: type) -> yaml.MappingNode:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserErrors([self._yaml_error(error, line)]) from None
        except yaml.YAMLError as error:
            raise UserErrors(
                [UserError(f"not YAML: {error}", self.where, "write it as UTF-8 text")]
            ) from None
        except RecursionError:
            raise UserErrors([UserError("nested too deeply", self.where, "flatten it")]) from None
        if not isinstance(node, yaml.MappingNode):
            what = (
                "the file is empty" if node is None else "expected 'key: value' lines at the top"
            )
            cure = f"write its keys: {', '.join(_fields(cls))}"
            raise UserErrors([UserError(what, self.where, cure)])
        return node

    def _yaml_error(self, error: yaml.MarkedYAMLError, line: int) -> UserError:
        tab = "'\\t'" in (error.problem or "")
        cure = "indent with spaces, not tabs" if tab else "check indentation, quotes and brackets"
        what = "a tab is not allowed in YAML here" if tab else f"not valid YAML: {error.problem}"
        return UserError(what, f"{self.where}:{line}", cure)

    def override(self, node: yaml.MappingNode, key: str, text: str) -> None:
        """Put ``key=value`` into the tree, replacing what stands there."""
        self.overridden.add(key)
        *parents, last = key.split(".")
        for i, name in enumerate(parents):
            old = next((v for k, v in node.value if k.value == name), None)
            child = yaml.MappingNode("tag:yaml.org,2002:map", [])
            if isinstance(old, yaml.MappingNode):  # an alias may stand for it elsewhere, too
                child.value, child.start_mark = list(old.value), old.start_mark
            else:
                self.overridden.add(".".join(parents[: i + 1]))
            if old is None:
                node.value.append((_key_node(name), child))
            node.value = [(k, child if k.value == name else v) for k, v in node.value]
            node = child
        node.value = [(k, v) for k, v in node.value if k.value != last]
        try:
            value = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            value = yaml.ScalarNode("tag:yaml.org,2002:str", text)
        node.value.append(
            (_key_node(last), value or yaml.ScalarNode("tag:yaml.org,2002:null", text))
        )

    def line_of(self, error: UserError) -> int:
        """The line that a noted mistake stands at, for reading order; the command line's first."""
        return int(error.where[len(self.where) + 1 :] or 0) if error.where != _COMMAND_LINE else 0

    def misfit(self, key: str, what: str, cure: str = "") -> None:
        """Note a value that is not of its type, so that what holds it cannot be made."""
        self.misfits += 1
        self.fail(key, what, cure)

    def fail(self, key: str, what: str, cure: str = "") -> None:
        """Note a mistake at ``key``, with the line of it or of its nearest parent."""
        parent = key
        while parent and parent not in self.lines:
            parent = parent.rpartition(".")[0]
        line = self.lines.get(parent, 0)
        where = f"{self.where}:{line}" if line else self.where
        if any(f"{key}.".startswith(f"{name}.") for name in self.overridden):
            where = _COMMAND_LINE
        self.errors.append(UserError(f"{key}: {what}" if key else what, where, cure))

    def build(self, kind: Any, node: yaml.Node, key: str) -> Any:
        """The value that ``node`` describes as type ``kind``; None after a mistake."""
        if node.start_mark is not None:
            self.lines.setdefault(key, node.start_mark.line + 1)
        if dataclasses.is_dataclass(kind):
            return self._dataclass(typing.cast(type, kind), node, key)
        origin = typing.get_origin(kind)
        if origin is Literal:
            return self._literal(typing.get_args(kind), node, key)
        if origin in (typing.Union, types.UnionType):
            return self._union(typing.get_args(kind), node, key)
        if origin is tuple:
            return self._tuple(typing.get_args(kind)[0], node, key)
        if origin is dict:
            return self._dict(typing.get_args(kind)[1], node, key)
        return self._scalar(kind, node, key)

    def _pairs(self, node: yaml.Node, key: str, cure: str = "") -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.misfit(key, f"expected 'key: value' pairs, got {_show(node)}", cure)
            return {}
        found: dict[str, yaml.Node] = {}
        for name_node, value in node.value:
            name = str(name_node.value)
            if name_node.start_mark is not None:
                self.lines[_join(key, name)] = name_node.start_mark.line + 1
            if name in found:
                self.misfit(_join(key, name), "the key stands twice", "remove one of the two")
            found[name] = value
        return found

    def _dataclass(self, cls: type, node: yaml.Node, key: str) -> Any:
        before = self.misfits
        fields = _fields(cls)
        named = "name" in fields and isinstance(node, yaml.ScalarNode) and not _is_null(node)
        pairs = self._pairs(node, key, f"write it as {{name: {node.value[:60]}}}" if named else "")
        for name in pairs.keys() - fields.keys():
            self.misfit(_join(key, name), "unknown key", did_you_mean(name, fields))
        for name, field in fields.items():
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and name not in pairs:
                self.misfit(_join(key, name), "is missing", f"add '{name}:' here")
        hints = _hints(cls)
        values = {
            n: self.build(hints[n], v, _join(key, n)) for n, v in pairs.items() if n in fields
        }
        in_range = [self._check_range(fields[n], v, _join(key, n)) for n, v in values.items()]
        if self.misfits > before:
            return None
        value = cls(**values)
        # What is out of its range, such as a divisor of zero, is not looked at further.
        for problem in getattr(value, "problems", list)() if all(in_range) else ():
            self.fail(_join(key, problem.key), problem.what, problem.cure)
        return value

    def _check_range(self, field: dataclasses.Field[Any], value: Any, key: str) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        low, high = field.metadata.get("min", -math.inf), field.metadata.get("max", math.inf)
        if low <= value <= high:
            return True
        valid = f"a value from {low} to {high}"
        if math.inf in (-low, high):
            valid = f"{low} or more" if high == math.inf else f"{high} or less"
        self.fail(key, f"{value} is out of range", f"use {valid}")
        return False

    def _literal(self, valid: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
        value = node.value if isinstance(node, yaml.ScalarNode) else None
        if value not in valid:
            self.misfit(key, f"{_show(node)} is not a valid choice", did_you_mean(value, valid))
        return value

    def _union(self, kinds: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
        if type(None) in kinds and _is_null(node):
            return None
        tagged = [k for k in kinds if dataclasses.is_dataclass(k)]
        if len(tagged) > 1 and isinstance(node, yaml.MappingNode):
            return self._named(tagged, node, key)
        scalar = isinstance(node, yaml.ScalarNode)
        fitting = [
            k
            for k in kinds
            if k is not type(None) and (typing.get_origin(k) is not tuple) == scalar
        ]
        return self.build((fitting or [k for k in kinds if k is not type(None)])[0], node, key)

    def _named(self, kinds: list[Any], node: yaml.MappingNode, key: str) -> Any:
        """Build the dataclass whose ``name`` the node gives; the first where it gives none."""
        names = {name: k for k in kinds for name in typing.get_args(_hints(k)["name"])}
        given = next((value for name, value in node.value if name.value == "name"), None)
        if given is None:
            return self.build(kinds[0], node, key)
        name = self.build(Literal[tuple(names)], given, _join(key, "name"))
        return self.build(names[name], node, key) if name in names else None

    def _tuple(self, kind: Any, node: yaml.Node, key: str) -> Any:
        if isinstance(node, yaml.MappingNode) and dataclasses.is_dataclass(kind):
            return (self.build(kind, node, key),)
        if not isinstance(node, yaml.SequenceNode):
            one = isinstance(node, yaml.ScalarNode) and not _is_null(node)
            example = f"[{node.value[:60]}], or [a, b, c] of several" if one else "[a, b, c]"
            self.misfit(key, f"expected a list, got {_show(node)}", f"write it as {example}")
            return ()
        return tuple(self.build(kind, child, f"{key}.{i}") for i, child in enumerate(node.value))

    def _dict(self, kind: Any, node: yaml.Node, key: str) -> Any:
        return {
            name: self.build(kind, child, _join(key, name))
            for name, child in self._pairs(node, key).items()
        }

    def _scalar(self, kind: type, node: yaml.Node, key: str) -> Any:
        value = _constructed(node)
        if kind is float and isinstance(value, str):
            value = _number(value)
        finite = isinstance(value, int | float) and abs(value) <= LARGEST
        if finite and kind in (int, float) and not _is_as_written(node, value):
            self.misfit(key, f"YAML 1.1 takes {_show(node)} for {value}", "write it in decimal")
            return None
        if finite and kind is float and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind or (kind in (int, float) and not finite):
            self.misfit(key, f"expected {_SCALARS[kind.__name__]}, got {_show(node)}")
            return None
        return value


def _constructed(node: yaml.Node) -> Any:
    """What YAML takes a scalar for; the node itself where it is none, or is not what its tag says.

    Such are ``!!int abc``, a tag that nobody knows, and 2024-13-45, which looks like a date.
    """
    if not isinstance(node, yaml.ScalarNode):
        return node
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, ValueError):
        return node


def _is_as_written(node: yaml.Node, value: float) -> bool:
    """Whether a number is what people take it for: neither octal, as 010, nor base 60, as 1:30."""
    digits = node.value.replace("_", "").lstrip("+-")
    return ":" not in digits and (not digits.isdecimal() or int(digits) == abs(value))


def _number(text: str) -> float | str:
    """YAML 1.1 reads 1e-4 as text; everyone means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _key_node(name: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", name)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key and name else key or name


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _show(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if _is_null(node) else f"'{node.value[:60]}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "'key: value' pairs"
