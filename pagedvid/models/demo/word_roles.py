"""The place of a word in a prompt, and whether it can be understood there.

Words come in any order, so most are understood wherever they are. Four places ask for words of one role:

    on a (white) background         a background; so do "background (white)", and "on (white)" when no thing follows
    a (black) circle                an attribute of a thing
    a circle moving (red)           a motion, when the thing is named before
    a circle and (large)            a thing

What else is there would be taken for something that the prompt does not say, so it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pagedvid.errors import PromptError
from pagedvid.models.demo.vocabulary import (
    BACKGROUND,
    JOINING_WORD,
    MAX_THINGS,
    PLURALS,
    SYNONYMS,
    THING_WORD,
    VOCABULARY,
    role_of,
    words_for,
)
from pagedvid.shown import shown

NUMBER = "one"
"""Stands for a thing ("a blue one"), or in front of it ("one blue square")."""
_PATTERN = re.compile(r"[^\W\d_]+|\d+|[,.;:!?\n]")
_ENDS = ",.;:!?\n"
"""Between two parts of a prompt."""
_ARTICLES = ("a", "the", "to")
_ROLES = {
    "size": "a size",
    "color": "a color of things",
    "kind": "a kind of thing",
    "motion": "a motion",
    BACKGROUND: "a background",
}


@dataclass(frozen=True)
class Word:
    """A word of a prompt, or the end of a part of it."""

    written: str
    """In lower case."""
    meaning: str
    """With synonyms replaced."""

    @property
    def role(self) -> str | None:
        """What the word is for; see `vocabulary.role_of`."""
        return role_of(self.meaning)

    @property
    def names_thing(self) -> bool:
        """Whether it says that there is a thing."""
        return self.meaning == THING_WORD or self.role == "kind"


_END = Word(",", ",")


def read_words(prompt: str) -> list[Word]:
    """The words of a prompt; punctuation ends a part of it."""
    found = _PATTERN.findall(prompt.lower())
    return [_END if text in _ENDS else Word(text, SYNONYMS.get(text, text)) for text in found]


def check_roles(words: Sequence[Word], prompt: str) -> None:
    """Raises PromptError for the first word that is where it cannot be understood. Linear in their number."""
    for word, role in _asked(words):
        if word.role is not None and word.role != role:
            raise PromptError(
                f"the prompt {shown(prompt)} uses {word.written!r} as {_ROLES[role]}, but it is {_ROLES[word.role]}; "
                f"{role}s are {', '.join(words_for(role))}"
            )


def check_plurals(words: Sequence[Word], prompt: str) -> None:
    """Raises PromptError for a word for several things."""
    is_named = False
    for word in words:
        is_verb = word.written == "circles" and is_named
        if word.written in PLURALS and not is_verb:
            raise PromptError(
                f"the prompt {shown(prompt)} says {word.written!r}, which are several things; name each of them, "
                f"such as 'a red square and a blue square' (at most {MAX_THINGS})"
            )
        is_named = (word.names_thing and word.written != NUMBER) or (is_named and word.meaning != JOINING_WORD)


def check_joined(parts: Sequence[Sequence[Word]], prompt: str) -> None:
    """Raises PromptError when one of several parts joined by "and" names no thing. Unknown words may be its name."""
    for part in parts:
        if all(word.meaning in VOCABULARY and not word.names_thing for word in part if word != _END):
            said = " ".join(word.written for word in part if word != _END)
            raise PromptError(
                f"the prompt {shown(prompt)} joins {said!r} by {JOINING_WORD!r}, but that names no thing; say what it "
                f"is, such as 'a {THING_WORD}', or leave {JOINING_WORD!r} out"
            )


def _asked(words: Sequence[Word]) -> Iterator[tuple[Word, str]]:
    """Words in places that ask for one role, and that role."""
    describes = _describing(words)
    is_named = False
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else _END
        if following.meaning == BACKGROUND and not _is_background(words, place + 2):
            yield word, BACKGROUND
        elif word.meaning == BACKGROUND and not _is_background(words, place - 1):
            if following != _END and not describes[place + 1]:
                yield following, BACKGROUND
        elif word.role == BACKGROUND and describes[place]:
            yield word, "color"
        elif word.meaning == "on":
            yield from _after_on(words, place + 1, describes)
        elif word.meaning == "moving" and is_named and not (place and words[place - 1].role == "motion"):
            yield from ((other, "motion") for other in _next_said(words, place + 1))
        is_named = (word.names_thing and word.written != NUMBER) or (is_named and word.meaning != JOINING_WORD)


def _is_background(words: Sequence[Word], place: int) -> bool:
    return 0 <= place < len(words) and words[place].role == BACKGROUND


def _describing(words: Sequence[Word]) -> list[bool]:
    """For every word, whether it is directly before the name of a thing."""
    describes = [False] * len(words)
    for place in reversed(range(len(words) - 1)):
        after = words[place + 1]
        goes_on = after.role is not None or after.meaning in ("moving", "staying")
        describes[place] = after.names_thing or (goes_on and describes[place + 1])
    return describes


def _after_on(words: Sequence[Word], place: int, describes: Sequence[bool]) -> Iterator[tuple[Word, str]]:
    """The words after "on", unless they describe a thing."""
    while place < len(words) and words[place].meaning in _ARTICLES:
        place += 1
    while place < len(words) and words[place].role is not None and not describes[place]:
        yield words[place], BACKGROUND
        place += 1


def _next_said(words: Sequence[Word], place: int) -> Iterator[Word]:
    """The word there, behind articles, if there is any."""
    while place < len(words) and words[place].meaning in _ARTICLES:
        place += 1
    yield from words[place : place + 1]
