"""Errors and log records as lines."""

import logging
import warnings

import pytest

from pagedvid.cli.messages import MAX_CHARS, error_line, logs_as_notes, reason, reason_told
from pagedvid.errors import PromptError
from pagedvid.shown import MAX_SHOWN_CHARS, shown


def test_one_printable_line():
    assert error_line("a\n b\u2028c\x1b[31m\u202e\ud83d é") == "a b c\\x1b[31m\\u202e\\ud83d é"


@pytest.mark.parametrize("value", ["x" * 100_000, "\x1b" * 100_000, "x " * 100_000])
def test_the_end_survives_whatever_is_given(value):
    line = error_line(f"start {value}; write it as 3")
    assert len(line) <= MAX_CHARS
    assert line.startswith("start ") and line.endswith("; write it as 3")


def test_values_are_cut_in_the_middle():
    assert shown("short") == "'short'"
    text = shown("a" * 5000 + "z")
    assert len(text) == MAX_SHOWN_CHARS and text.startswith("'aaa") and text.endswith("aaz'") and " ... " in text


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (PromptError("no word\n is known"), "no word is known"),
        (PromptError(""), "PromptError"),
        (ValueError("odd  frames"), "ValueError: odd frames"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_is_shown_alike_whether_it_is_here_or_told_of(error, shown):
    assert reason(error) == reason_told(type(error).__name__, str(error)) == shown


def test_of_an_error_of_the_system_only_its_words_are_shown():
    assert reason(OSError(28, "No space left on device", "/a/path")) == "No space left on device"
    assert reason(OSError("odd")) == "odd"


def test_notes_leave_out_the_failures_that_the_engine_yields_as_outputs():
    notes: list[str] = []
    with logs_as_notes(notes.append):
        logging.getLogger("pagedvid.engine.engine").error("video a failed: NaN")
        logging.getLogger("pagedvid.engine.engine").warning("a step of 2 videos failed")
        logging.getLogger("pagedvid.service.worker").error("the engine broke")
        logging.getLogger("pagedvid.models").info("codec: int2")
        warnings.warn("slow", stacklevel=1)
    assert notes == ["warning a step of 2 videos failed", "codec: int2", "warning slow"]
