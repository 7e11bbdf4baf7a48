"""Whole numbers from outside, checked once where they come in.

A float that equals a whole number must not get further: it is equal to that number as a key of a cached function, and
whoever asks for the same later is given the float's result. Whole numbers of numpy become Python's.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

from pagedvid.errors import PagedvidError, ShapeError


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
        raise error(f"{name} is {value!r}, of type {type(value).__name__}; it must be a whole number such as 3")
    if minimum is not None and number < minimum:
        raise error(f"{name} is {number}; it must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise error(f"{name} is {number}; it must be at most {maximum}")
    return number


def whole_numbers(
    name: str, values: object, minimum: int | None = None, error: type[PagedvidError] = ShapeError
) -> tuple[int, ...]:
    """Several of them, from any list or tuple. Raises `error`."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise error(f"{name} is {values!r}; it must be a tuple of whole numbers such as (0, 3)")
    return tuple(whole_number(name, value, minimum, error=error) for value in values)
