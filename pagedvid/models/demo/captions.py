"""The demo model's language: captions of scenes, and prompts as one number per attribute.

A prompt describes one thing, or two joined by "and"; words come in any order. Reading it fills slots:

    "a large red circle moving left and a small blue shape on a teal background"
    slot     size color kind motion | size color kind motion | background
    value    large red circle left  | small blue  ?    ?     | teal                  ?: left open, 0

Synonyms are mapped to one word first, so the model learns each meaning once.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from pagedvid.errors import PromptError
from pagedvid.models.demo.world import BACKGROUNDS, COLORS, HALF_WIDTHS, KINDS, MOTIONS, Scene, Thing

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

_SLOT_OF = {word: (slot, value) for slot, words in ATTRIBUTES.items() for value, word in enumerate(words, start=1)}
_MOTION_PHRASES = {word: f"moving {word}" for word in ("left", "right", "up", "down")} | {"still": "staying still"}


def _describe(thing: Thing, rng: np.random.Generator | None, drop: float) -> str:
    def keep() -> bool:
        return rng is None or rng.random() >= drop

    words = ["a", *(word for word in (thing.size, thing.color) if keep()), thing.kind if keep() else THING_WORD]
    if keep():
        words.append(_MOTION_PHRASES.get(thing.motion, thing.motion))
    return " ".join(words)


def caption(scene: Scene, rng: np.random.Generator | None = None, drop: float = 0.0) -> str:
    """Describe a scene, e.g. "a large red circle moving left on a black background".

    With `rng` each attribute is left out with probability `drop`.
    """
    text = f" {JOINING_WORD} ".join(_describe(thing, rng, drop) for thing in scene.things)
    if rng is not None and rng.random() < drop:
        return text
    return f"{text} on a {scene.background} background"


def split_words(prompt: str) -> list[str]:
    """Lower-case words of a prompt with synonyms replaced; punctuation separates words."""
    words = re.findall(r"[^\W\d_]+|\d+", prompt.lower())
    return [SYNONYMS.get(word, word) for word in words]


def read_prompt(prompt: str) -> np.ndarray:
    """Slot values of a prompt, int64 [NUM_SLOTS]; 0 where the prompt leaves an attribute open.

    Unknown words are left out with one warning that names them. Raises PromptError when no word says anything about
    the picture, when one thing gets two words for one attribute, and for more than two things.
    """
    words = split_words(prompt)
    if not set(words) & {*_SLOT_OF, *BACKGROUNDS, THING_WORD}:
        raise PromptError(
            f"no word of the prompt {prompt!r} is known to the demo model; it knows: {', '.join(VOCABULARY)}"
        )
    unknown = list(dict.fromkeys(word for word in words if word not in VOCABULARY))
    if unknown:
        warnings.warn(
            f"the demo model does not know {', '.join(map(repr, unknown))} in {prompt!r} and ignores it", stacklevel=2
        )
    things = _split_things(words)
    if len(things) > MAX_THINGS:
        raise PromptError(f"the prompt {prompt!r} describes {len(things)} things; at most {MAX_THINGS}: name fewer")
    slots = [_slots_of(thing, prompt) for thing in things]
    slots += [[ABSENT] * len(ATTRIBUTES)] * (MAX_THINGS - len(things))
    backgrounds = list(dict.fromkeys(word for word in words if word in BACKGROUNDS))
    if len(backgrounds) > 1:
        raise PromptError(f"the prompt {prompt!r} names the backgrounds {', '.join(backgrounds)}; name one")
    background = 1 + list(BACKGROUNDS).index(backgrounds[0]) if backgrounds else 0
    return np.array([*(value for thing in slots for value in thing), background], dtype=np.int64)


def _split_things(words: Sequence[str]) -> list[list[str]]:
    """The words of each thing; an "and" without a thing on both sides joins nothing."""
    things: list[list[str]] = [[]]
    for word in words:
        if word == JOINING_WORD:
            things.append([])
        elif word in _SLOT_OF or word == THING_WORD:
            things[-1].append(word)
    return [thing for thing in things if thing] or [[]]


def _slots_of(words: Sequence[str], prompt: str) -> list[int]:
    said: dict[str, str] = {}
    for word in words:
        if word in _SLOT_OF and said.setdefault(_SLOT_OF[word][0], word) != word:
            slot = _SLOT_OF[word][0]
            raise PromptError(
                f"the prompt {prompt!r} gives one thing the {slot}s {said[slot]!r} and {word!r}; choose one, or "
                f"describe two things joined by {JOINING_WORD!r}"
            )
    return [_SLOT_OF[said[slot]][1] if slot in said else 0 for slot in ATTRIBUTES]
