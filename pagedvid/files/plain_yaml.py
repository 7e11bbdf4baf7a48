"""YAML as pagedvid reads it: plain values only, written in full where they are used.

Words are read as in YAML 1.2: true and false are the only booleans (`correction: off` is a word), numbers are decimal,
dates are words. Tags, aliases and deep nesting are refused: no setting needs them, and with each of them a small file
can expand to a huge value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import yaml
from typing_extensions import override
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from pagedvid.errors import ConfigError
from pagedvid.shown import short

MAX_YAML_BYTES = 2**17
MAX_DEPTH = 16
_PREFIX = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _TEXT = (f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str"))


class YamlError(ConfigError):
    """What is wrong, and on which line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to the tree of nodes, without constructing values."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    @override
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(line, f"the alias *{short(str(event.anchor))} is not read; write the value again")
        if event.tag not in (None, "!"):
            raise YamlError(
                line, f"the tag {short(event.tag.replace(_PREFIX, '!!'))} is not read; write the plain value"
            )
        if self._depth == MAX_DEPTH:
            raise YamlError(line, f"values are nested more than {MAX_DEPTH} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _tag, _pattern, _first in (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]{1,25}", list("-+0123456789")),
    (_FLOAT, r"(?=.{1,40}\Z)[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def compose(text: str) -> yaml.Node | None:
    """The tree of a document; None when it is empty. Raises `YamlError`."""
    try:
        root: yaml.Node | None = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise YamlError(line, f"not valid YAML: {error.problem or error.context}") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"not valid YAML: U+{ord(text[error.position]):04X} is not printable") from None
    return root


def entries(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """(key, its node, node of its value) of a mapping.

    Raises `YamlError` for a key that is not a word or number, and for one that is written twice, because one of the two
    would be ignored.
    """
    seen: set[str] = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError(line_of(key_node), "a key must be a word or a number")
        key = str(value_of(key_node))
        if key in seen:
            raise YamlError(line_of(key_node), f'"{short(key)}" is written twice; remove one of them')
        seen.add(key)
        yield key, key_node, value_node


def value_of(node: yaml.Node) -> object:
    """None, bool, int, float, str, or lists and dicts of these. Raises `YamlError`."""
    if isinstance(node, yaml.SequenceNode):
        return [value_of(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {value_of(key): value_of(value) for _, key, value in entries(node)}
    return _SCALARS[node.tag](node.value)


def line_of(node: yaml.Node) -> int:
    """The line on which a node begins, counted from 1."""
    return int(node.start_mark.line) + 1


def read_scalar(written: str) -> object:
    """A single value: "4" -> 4, "null" -> None, "off" -> "off". Raises `YamlError`."""
    root = compose(written)
    return None if root is None else value_of(root)


_SCALARS: dict[str, Callable[[str], object]] = {
    _NULL: lambda word: None,
    _BOOL: lambda word: word.lower() == "true",
    _INT: int,
    _FLOAT: float,
    _TEXT: str,
}
