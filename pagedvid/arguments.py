"""Arguments of public calls, checked once where they enter.

A float that equals a whole number must not get any further: as a key of a cached function both are the same, so a later
call with the whole number would get the float's result. Whole numbers of NumPy become Python's.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TypeVar

from pagedvid.errors import PagedvidError, ShapeError
from pagedvid.shown import shown

Kind = TypeVar("Kind")


def whole_number(
    name: str,
    value: object,
    minimum: int | None = None,
    maximum: int | None = None,
    error: type[PagedvidError] = ShapeError,
) -> int:
    """`value` as an int. Raises `error` for floats, booleans, text, and numbers outside `minimum` to `maximum`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise error(f"{name} is {shown(value)}, of type {type(value).__name__}; it must be a whole number such as 3")
    if minimum is not None and number < minimum:
        raise error(f"{name} is {shown(number)}; it must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise error(f"{name} is {shown(number)}; it must be at most {maximum}")
    return number


def whole_numbers(
    name: str, values: object, minimum: int | None = None, error: type[PagedvidError] = ShapeError
) -> tuple[int, ...]:
    """`values` as a tuple of ints, from any iterable but text. Raises `error`."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise error(f"{name} is {shown(values)}; it must be a tuple of whole numbers such as (0, 3)")
    return tuple(whole_number(name, value, minimum, error=error) for value in values)


def instance_of(kind: type[Kind], name: str, value: object, example: str, error: type[PagedvidError]) -> Kind:
    """`value`, if it is an instance of `kind`. Raises `error`, which says what to give instead."""
    if not isinstance(value, kind):
        raise error(f"{name} is {shown(value)}, of type {type(value).__name__}; give {example}")
    return value


def list_of(
    kind: type[Kind], name: str, values: object, example: str, error: type[PagedvidError] = ShapeError
) -> list[Kind]:
    """`values` as a list, if all are instances of `kind`. Raises `error`; text is not a list of letters."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise error(f"{name} is {shown(values)}; give a list such as {example}")
    return [instance_of(kind, f"{name}[{place}]", value, example, error) for place, value in enumerate(values)]


def one_of(allowed: Sequence[str], name: str, value: object, error: type[PagedvidError]) -> str:
    """`value`, if it is one of these words. Raises `error`."""
    if not isinstance(value, str) or value not in allowed:
        raise error(f"{name} is {shown(value)}; allowed are {', '.join(allowed)}")
    return value
