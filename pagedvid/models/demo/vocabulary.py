"""The words of the demo model's language, and what each of them says.

Synonyms are mapped to one word first, so the model learns each meaning once.
"""

from __future__ import annotations

from collections.abc import Mapping

from pagedvid.models.demo.world import BACKGROUNDS, COLORS, HALF_WIDTHS, KINDS, MOTIONS

MAX_THINGS = 2
"""Most things of one scene."""
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "size": tuple(HALF_WIDTHS),
    "color": tuple(COLORS),
    "kind": KINDS,
    "motion": MOTIONS,
}
"""What is said of one thing, and the words for it. A slot holds 0 or 1 + the word's place here."""
NUM_SLOTS = MAX_THINGS * len(ATTRIBUTES) + 1
"""The attributes of every thing, then the background."""
ABSENT = 1 + max(len(words) for words in ATTRIBUTES.values())
"""Value of all slots of a thing that the scene does not have."""
NUM_VALUES = ABSENT + 1
"""Slot values are below this number."""

JOINING_WORD = "and"
THING_WORD = "shape"
"""Says that there is a thing, and nothing about it."""
FILLER_WORDS = ("a", "on", "to", "the", "background", "moving", "staying")
"""Words that say nothing about the picture by themselves."""
VOCABULARY: tuple[str, ...] = (
    JOINING_WORD,
    THING_WORD,
    *FILLER_WORDS,
    *(word for words in ATTRIBUTES.values() for word in words),
    *BACKGROUNDS,
)

SYNONYMS: Mapping[str, str] = {
    "an": "a",
    "backdrop": "background",
    "object": "shape",
    "thing": "shape",
    "one": "shape",
    "going": "moving",
    "moves": "moving",
    "stays": "staying",
    "standing": "staying",
    "big": "large",
    "huge": "large",
    "little": "small",
    "tiny": "small",
    "violet": "purple",
    "grey": "gray",
    "disc": "circle",
    "ball": "circle",
    "box": "square",
    "plus": "cross",
    "leftwards": "left",
    "rightwards": "right",
    "upwards": "up",
    "downwards": "down",
    "circles": "circling",
    "orbiting": "circling",
    "bounces": "bouncing",
    "motionless": "still",
}

SLOT_OF: Mapping[str, tuple[str, int]] = {
    word: (attribute, value) for attribute, words in ATTRIBUTES.items() for value, word in enumerate(words, start=1)
}
"""Attribute and value that a word gives to its thing."""
BACKGROUND = "background"
"""The role of the words of `BACKGROUNDS`, and the word that follows them."""
_NOUNS = ("shape", *KINDS, *(word for word, meaning in SYNONYMS.items() if meaning in ("shape", *KINDS)))
PLURALS = frozenset({f"{noun}s" for noun in _NOUNS} | {f"{noun}es" for noun in _NOUNS})
"""Words for several things; "circles" is also what one thing does."""


def role_of(word: str) -> str | None:
    """What a word is for: an attribute, "background", or None for words that say nothing by themselves."""
    return BACKGROUND if word in BACKGROUNDS else SLOT_OF[word][0] if word in SLOT_OF else None


def words_for(role: str) -> tuple[str, ...]:
    """All words for an attribute or the background."""
    return tuple(BACKGROUNDS) if role == BACKGROUND else ATTRIBUTES[role]
