"""Environment variables: no other file reads or sets any."""

from __future__ import annotations

import os
from collections.abc import Mapping

API_KEY = "PAGEDVID_API_KEY"
"""The key of `pagedvid serve`, for those who start it with secrets as variables."""

TORCHRUN, RANK, LOCAL_RANK, WORLD_SIZE = "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE"
"""Set by torchrun, in every process that it starts."""
RENDEZVOUS = "PAGEDVID_RENDEZVOUS"
"""Set by `pagedvid generate --devices` in the processes that it starts: where they meet."""


def value_of(name: str) -> str | None:
    """The value; None where the variable is not set."""
    return os.environ.get(name)


def number_of(name: str) -> int:
    """The value of a variable that is set to a whole number."""
    return int(os.environ[name])


def with_values(values: Mapping[str, str]) -> dict[str, str]:
    """All variables, with these values, for a process to be started."""
    return {**os.environ, **values}


def set_value(name: str, value: str) -> None:
    """For this process and those that it starts."""
    os.environ[name] = value
