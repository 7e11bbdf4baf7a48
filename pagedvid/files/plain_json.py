"""Reads JSON objects, such as the lines of .jsonl files, into plain values; what JSON leaves open is refused."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NoReturn

from pagedvid.errors import ConfigError, listed
from pagedvid.files.text import check_text
from pagedvid.shown import short, shown

MAX_DIGITS = 25
"""Most digits of a whole number; no field needs more, and Python refuses to read very long ones."""


def read_json_object(line: str) -> dict[str, Any]:
    """The fields of a JSON object.

    Raises `ConfigError` for anything else, and for what JSON readers disagree about: a field that is written twice,
    NaN, infinity, huge numbers. Text may be anything that JSON can escape; see `check_texts`.
    """
    try:
        fields = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ConfigError("not valid JSON: brackets are nested too deeply") from None
    if not isinstance(fields, dict):
        raise ConfigError("each line must be a JSON object, in braces")
    return fields


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f'"{short(twice)}" is written twice; remove one of them')
    return fields


def object_with(names: Collection[str], value: object, what: str) -> dict[str, Any]:
    """`value`, if it is an object with exactly these fields. Raises `ConfigError`, which begins with `what`."""
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is {shown(value)}; it must be an object with the fields {', '.join(names)}")
    if differing := sorted(value.keys() ^ set(names)):
        raise ConfigError(f"{what} has missing or unknown fields: {shown(listed(differing))}")
    return value


def rows_of(length: int, what: str, value: object) -> tuple[tuple[Any, ...], ...]:
    """`value`, if it is a list of lists of that length, as tuples. Raises `ConfigError`, which begins with `what`."""
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == length for row in value):
        raise ConfigError(f"{what} is {shown(value)}; it must be a list of lists of {length} values")
    return tuple(map(tuple, value))


def check_texts(value: Any) -> None:
    """Applies `check_text` to a value and everything in it, field names included. Raises `ConfigError`."""
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, list):
        for item in value:
            check_texts(item)
    elif isinstance(value, dict):
        check_texts([*value, *value.values()])


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ConfigError(f"the number {short(digits)} has {len(digits)} digits; the most is {MAX_DIGITS}")
    return int(digits)


def _number(written: str) -> float:
    number = float(written)
    if number in (float("inf"), float("-inf")):
        raise ConfigError(f"the number {short(written)} is too large")
    return number


def _constant(name: str) -> NoReturn:
    raise ConfigError(f"not valid JSON: {name} is not a number; leave the field out or write a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_number, parse_constant=_constant)
