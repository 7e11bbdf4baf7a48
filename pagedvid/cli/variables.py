"""Environment variables: no other file reads or sets any."""

from __future__ import annotations

import os

API_KEY = "PAGEDVID_API_KEY"
"""The key of `pagedvid serve`, for those who start it with secrets as variables."""


def value_of(name: str) -> str | None:
    """The value; None where the variable is not set."""
    return os.environ.get(name)


def set_value(name: str, value: str) -> None:
    """For this process and those that it starts."""
    os.environ[name] = value
