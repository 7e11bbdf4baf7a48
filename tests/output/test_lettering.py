"""Captions: cut to a width with few measurements, however long they are, and without undrawable letters."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.output import lettering
from pagedvid.output.lettering import ELLIPSIS, escape, one_line, shorten, system_font

WIDTHS = {"i": 3, "w": 11}


def width(text):
    return sum(WIDTHS.get(letter, 6) for letter in text)


@given(st.text(alphabet="iwx ", max_size=60), st.integers(0, 300))
def test_as_much_as_fits_is_kept(text, room):
    shown = shorten(text, room, width)
    if width(text) <= room:
        assert shown == text
        return
    kept = shown.removesuffix(ELLIPSIS)
    assert text.startswith(kept) and shown != kept
    assert width(shown) <= max(room, width(ELLIPSIS))
    longer = text[: len(kept) + 1].rstrip()
    assert longer == kept or width(longer + ELLIPSIS) > room


@pytest.mark.parametrize("num_letters", [10**3, 10**6])
def test_a_long_text_takes_few_looks_at_short_texts(num_letters):
    looked_at = []

    def measured(text):
        looked_at.append(len(text))
        return width(text)

    assert len(shorten("x" * num_letters, 900, measured)) == (900 - 18) // 6 + 3
    assert len(looked_at) <= 12 and max(looked_at) <= 1010


@pytest.mark.parametrize(
    ("text", "line"),
    [(" a\n b\t c ", "a b c"), ("e\u0301", "é"), ("x" * 10**6, "x" * 100), ("y " * 10**6, "y " * 50), ("", "")],
)
def test_one_line(text, line):
    assert one_line(text, 100) == line


def test_escapes_are_those_of_python():
    text = "a红b\x00\ud83d😀"
    shown = escape(text, set(text) - {"a", "b"})
    assert shown == r"a\u7ea2b\x00\ud83d\U0001f600"
    assert shown.encode().decode("unicode_escape") == text


class TestSystemFont:
    @pytest.fixture(autouse=True)
    def asked_anew(self):
        system_font.cache_clear()
        yield
        system_font.cache_clear()

    def test_fontconfig_is_asked_for_the_letters(self, monkeypatch):
        asked = []

        def answer(words, **options):
            asked.append(words[-1])
            return subprocess.CompletedProcess(words, 0, stdout=b"2 /fonts/some font.ttc")

        monkeypatch.setattr(lettering.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(lettering.subprocess, "run", answer)
        assert system_font(frozenset("红 色")) == (Path("/fonts/some font.ttc"), 2)
        assert asked == ["sans:charset=20 7ea2 8272"]

    @pytest.mark.parametrize(
        "error", [OSError("gone"), subprocess.TimeoutExpired("fc-match", 5), subprocess.CalledProcessError(1, "fc")]
    )
    def test_fontconfig_that_does_not_answer_has_no_fonts(self, monkeypatch, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(lettering.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(lettering.subprocess, "run", fail)
        assert system_font(frozenset("x")) is None

    def test_a_machine_without_fontconfig_has_no_fonts(self, monkeypatch):
        monkeypatch.setattr(lettering.shutil, "which", lambda name: None)
        assert system_font(frozenset("x")) is None
