"""The demo model's language: captions of scenes, and prompts as one number per attribute.

A prompt describes one thing, or two joined by "and"; words come in any order. Reading it fills slots:

    "a large red circle moving left and a small blue shape on a teal background"
    slot     size color kind motion | size color kind motion | background
    value    large red circle left  | small blue  ?    ?     | teal                  ?: left open, 0

The words are in vocabulary.py; where they can be, in word_roles.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pagedvid.errors import PromptError, listed
from pagedvid.models.demo.vocabulary import (
    ABSENT,
    ATTRIBUTES,
    BACKGROUND,
    JOINING_WORD,
    MAX_THINGS,
    SLOT_OF,
    THING_WORD,
    VOCABULARY,
    role_of,
    words_for,
)
from pagedvid.models.demo.word_roles import Word, check_joined, check_plurals, check_roles, read_words
from pagedvid.models.demo.world import BACKGROUNDS, Scene, Thing
from pagedvid.shown import shown

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
    return [word.meaning for word in read_words(prompt) if word.meaning.isalnum()]


def read_prompt(prompt: str) -> np.ndarray:
    """Slot values of a prompt, int64 [NUM_SLOTS]; 0 where the prompt leaves an attribute open.

    Unknown words are left out with one warning that names them. Raises PromptError when no word says anything about
    the picture, when a word is where it cannot be understood (word_roles.py), when one thing gets two words for one
    attribute, and for more than two things.
    """
    words = read_words(prompt)
    check_plurals(words, prompt)
    if not any(role_of(word.meaning) or word.meaning == THING_WORD for word in words):
        said = f"no word of the prompt {shown(prompt)} is known to the demo model"
        if not any(word.meaning.isalnum() for word in words):
            said = "the prompt is empty"
        raise PromptError(f"{said}; the demo model knows: {', '.join(VOCABULARY)}")
    _warn_of_unknown(words, prompt)
    check_roles(words, prompt)
    things = _split_things(words)
    if len(things) > MAX_THINGS:
        raise PromptError(
            f"the prompt {shown(prompt)} describes {len(things)} things; at most {MAX_THINGS}: name fewer"
        )
    if len(things) > 1:
        check_joined(things, prompt)
    slots = [_slots_of(thing, prompt) for thing in things]
    slots += [[ABSENT] * len(ATTRIBUTES)] * (MAX_THINGS - len(things))
    backgrounds = list(dict.fromkeys(word.meaning for word in words if word.role == BACKGROUND))
    if len(backgrounds) > 1:
        raise PromptError(f"the prompt {shown(prompt)} names the backgrounds {', '.join(backgrounds)}; name one")
    background = 1 + list(BACKGROUNDS).index(backgrounds[0]) if backgrounds else 0
    return np.array([*(value for thing in slots for value in thing), background], dtype=np.int64)


def _warn_of_unknown(words: Sequence[Word], prompt: str) -> None:
    unknown = [word for word in words if word.meaning.isalnum() and word.meaning not in VOCABULARY]
    if not unknown:
        return
    message = (
        f"the demo model does not know {listed(list(dict.fromkeys(repr(word.written) for word in unknown)))} in "
        f"{shown(prompt)} and ignores it"
    )
    names = {word.written for word in unknown}
    if any(word.written in names and after.meaning == BACKGROUND for word, after in pairwise(words)):
        message += f"; backgrounds are {', '.join(words_for(BACKGROUND))}"
    warnings.warn(message, stacklevel=3)


def _split_things(words: Sequence[Word]) -> list[list[Word]]:
    """The words of each thing; an "and" without anything said of a thing on both sides joins nothing."""
    parts: list[list[Word]] = [[]]
    for word in words:
        if word.meaning == JOINING_WORD:
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if any(word.meaning in SLOT_OF or word.names_thing for word in part)] or [[]]


def _slots_of(words: Sequence[Word], prompt: str) -> list[int]:
    said: dict[str, Word] = {}
    for word in words:
        if word.meaning not in SLOT_OF:
            continue
        slot = SLOT_OF[word.meaning][0]
        if said.setdefault(slot, word).meaning != word.meaning:
            raise PromptError(
                f"the prompt {shown(prompt)} gives one thing the {slot}s {said[slot].written!r} and {word.written!r}; "
                f"choose one of {', '.join(words_for(slot))}, or describe two things joined by {JOINING_WORD!r}"
            )
    return [SLOT_OF[said[slot].meaning][1] if slot in said else 0 for slot in ATTRIBUTES]
