"""The inverse question: which window and which codec reach a number of streams, or of seconds that each one keeps?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.look_back import LookBack
from pagedvid.capacity.sizing import Answer, Question, answer, check_memory, longest_look_back
from pagedvid.config.rules import Rule, number, whole
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.files.plain_yaml import read_scalar
from pagedvid.shown import short, shown


@dataclass(frozen=True)
class Target:
    """What is wanted; at least one of the two is set."""

    num_streams: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class TargetAnswer:
    """How close one choice of codecs comes to the target."""

    answer: Answer
    """With the target's window, or with the question's own when the target names no seconds."""
    reaches: bool
    longest: LookBack | None
    """The longest look-back with which the wanted number of streams fits."""
    longest_seconds: float


def parse_targets(written: list[str]) -> Target:
    """Reads ["streams=16", "seconds=60"]. Raises ConfigError."""
    values: dict[str, str] = {}
    for word in written:
        key, equals, value = word.partition("=")
        if not equals or key not in ("streams", "seconds"):
            raise ConfigError(f"--target is {shown(word)}; write streams=N or seconds=S")
        if key in values:
            raise ConfigError(f"--target {key} is given twice: {short(values[key])} and {short(value)}; keep one")
        values[key] = value
    return Target(_streams(values.get("streams")), _seconds(values.get("seconds")))


def _streams(written: str | None) -> int | None:
    if written is None:
        return None
    return int(_read("streams", written, whole(1, 10**9)))


def _seconds(written: str | None) -> float | None:
    if written is None:
        return None
    return float(_read("seconds", written, number(0.001, 10**7)))


def _read(key: str, written: str, rule: Rule) -> Any:
    try:
        return rule.read(read_scalar(written))
    except ValueError:
        raise ConfigError(f"--target {key}={short(written)}: allowed is {rule.allowed}") from None


def target_question(question: Question, target: Target) -> Question:
    """The question with the look-back that the target asks for."""
    if target.seconds is None:
        return question
    return question.with_look_back(question.card.look_back_of_seconds(target.seconds))


def reach(question: Question, target: Target, choices: Mapping[str, StreamCodecs]) -> list[TargetAnswer]:
    """Every choice's answer, in the order given. Raises CapacityError when none reaches the target."""
    wanted = target_question(question, target)
    num_streams = target.num_streams or 1
    check_memory(wanted)
    found = []
    for name, codecs in choices.items():
        row = answer(wanted, name, codecs)
        longest = longest_look_back(wanted, codecs, num_streams)
        seconds = wanted.with_look_back(longest).size.seconds if longest else 0.0
        found.append(TargetAnswer(row, row.num_streams >= num_streams, longest, seconds))
    if not any(item.reaches or (target.seconds is None and item.longest) for item in found):
        raise _out_of_reach(wanted, target, found)
    return found


def _out_of_reach(question: Question, target: Target, found: list[TargetAnswer]) -> CapacityError:
    most = max(found, key=lambda item: item.answer.num_streams)
    longest = max(found, key=lambda item: item.longest_seconds)
    wanted = f"{target.num_streams or 1} stream(s) of {question.card.name} with the window {question.look_back}"
    hint = (
        f"for that many streams the longest window is {longest.longest} ({longest.longest_seconds:g} s) "
        f"in {longest.answer.name}"
        if longest.longest
        else "not even the shortest window fits for that many streams"
    )
    return CapacityError(
        f"no codec reaches {wanted}: {most.answer.name} fits {most.answer.num_streams}; {hint}. Give more memory."
    )
