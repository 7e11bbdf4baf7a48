"""Traces of arrivals: one JSON object per line.

    {"start_seconds": 12.5, "length_seconds": 60, "resolution": "832x480", "num_branches": 1}

`start_seconds` and `length_seconds` are required; the others default to the question's. Lines may be in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pagedvid.capacity.cards import MAX_BRANCHES, Resolution, StreamSize
from pagedvid.capacity.sizing import Question
from pagedvid.errors import ConfigError
from pagedvid.files.plain_json import read_json_object
from pagedvid.files.text import read_text
from pagedvid.shown import shown

MAX_TRACE_BYTES = 2**26
"""About a million lines."""
MAX_SECONDS = 10**8
_KEYS = ("start_seconds", "length_seconds", "resolution", "num_branches")


@dataclass(frozen=True)
class Arrival:
    """One request for a stream."""

    start_seconds: float
    length_seconds: float
    resolution: Resolution
    num_branches: int

    def size(self, question: Question) -> StreamSize:
        """The stream that is asked for, in integers."""
        return question.card.stream_size(self.resolution, question.look_back, self.num_branches)


def read_trace(path: Path, question: Question) -> list[Arrival]:
    """All arrivals in order of time. Raises ConfigError, which names the line that is wrong."""
    arrivals = []
    for number, line in enumerate(read_text(path, "trace", MAX_TRACE_BYTES).split("\n"), start=1):
        if line.strip():
            try:
                arrivals.append(_arrival(line, question))
            except ConfigError as error:
                raise ConfigError(f"{path.name}:{number}: {error}") from None
    if not arrivals:
        raise ConfigError(f"trace {path} has no arrivals; tools/make_trace.py writes a trace")
    return sorted(arrivals, key=lambda arrival: arrival.start_seconds)


def _arrival(line: str, question: Question) -> Arrival:
    values = read_json_object(line)
    unknown = sorted(set(values) - set(_KEYS))
    if unknown:
        raise ConfigError(f"unknown key {shown(unknown[0])}; known are {', '.join(_KEYS)}")
    written = values.get("resolution")
    resolution = question.resolution if written is None else Resolution.parse(written)
    question.card.tokens_per_frame(resolution)
    return Arrival(
        _seconds(values, "start_seconds", 0.0),
        _seconds(values, "length_seconds", 1e-6),
        resolution,
        _branches(values.get("num_branches"), question),
    )


def _seconds(values: dict[str, object], key: str, minimum: float) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is {shown(value)}; it must be a number of seconds")
    if not (math.isfinite(value) and minimum <= value <= MAX_SECONDS):
        raise ConfigError(f"{key} is {value}; allowed is {'0' if minimum == 0 else 'more than 0'} to {MAX_SECONDS}")
    return float(value)


def _branches(value: object, question: Question) -> int:
    if value is None:
        return question.size.num_branches
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_BRANCHES:
        raise ConfigError(f"num_branches is {shown(value)}; it must be a whole number from 1 to {MAX_BRANCHES}")
    return value
