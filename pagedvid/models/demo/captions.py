"""The demo model's language: captions of scenes, the vocabulary, and prompts as word numbers.

A prompt is any order of known words. Synonyms are mapped to one word before numbering, so the model learns each
meaning once.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import numpy as np

from pagedvid.errors import PromptError
from pagedvid.models.demo.world import BACKGROUNDS, COLORS, HALF_WIDTHS, KINDS, Scene, Thing

MAX_WORDS = 16
"""Words of a prompt that the text encoder reads; shorter prompts are padded."""

PADDING = "<pad>"
FILLER_WORDS = ("a", "on", "to", "the", "and", "background")
"""Words that say nothing about the picture by themselves."""
GENERAL_WORDS = ("shape", "moving", "staying")
MOTION_WORDS = ("left", "right", "up", "down", "circling", "bouncing", "still")
VOCABULARY: tuple[str, ...] = (
    PADDING,
    *FILLER_WORDS,
    *GENERAL_WORDS,
    *HALF_WIDTHS,
    *COLORS,
    *KINDS,
    *MOTION_WORDS,
    *BACKGROUNDS,
)

SYNONYMS: Mapping[str, str] = {
    "an": "a",
    "backdrop": "background",
    "object": "shape",
    "going": "moving",
    "moves": "moving",
    "moved": "moving",
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

_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}
_MOTION_PHRASES: Mapping[str, tuple[str, ...]] = {
    "left": ("moving left", "moving to the left", "left"),
    "right": ("moving right", "moving to the right", "right"),
    "up": ("moving up", "moving upwards", "up"),
    "down": ("moving down", "moving downwards", "down"),
    "circling": ("circling", "moving and circling"),
    "bouncing": ("bouncing", "moving and bouncing"),
    "still": ("staying still", "still"),
}


def _describe(thing: Thing, rng: np.random.Generator | None, drop: float) -> str:
    def keep() -> bool:
        return rng is None or rng.random() >= drop

    words = ["a"]
    if keep():
        words.append(thing.size)
    if keep():
        words.append(thing.color)
    words.append(thing.kind if keep() else "shape")
    if keep():
        phrases = _MOTION_PHRASES[thing.motion]
        words.append(phrases[0] if rng is None else str(rng.choice(phrases)))
    return " ".join(words)


def caption(scene: Scene, rng: np.random.Generator | None = None, drop: float = 0.1) -> str:
    """Describe a scene, e.g. "a large red circle moving left on a black background".

    With `rng`, wording varies and each attribute is left out with probability `drop`; without, the full plain caption.
    """
    text = " and ".join(_describe(thing, rng, drop) for thing in scene.things)
    if rng is None:
        return f"{text} on a {scene.background} background"
    if rng.random() < drop:
        return text
    return text + str(rng.choice([" on a {} background", " on {}", ", {} background"])).format(scene.background)


def split_words(prompt: str) -> list[str]:
    """Lower-case words of a prompt with synonyms replaced; punctuation separates words."""
    words = re.findall(r"[^\W\d_]+|\d+", prompt.lower())
    return [SYNONYMS.get(word, word) for word in words]


def encode_words(prompt: str) -> np.ndarray:
    """Word numbers of a prompt, int64 [MAX_WORDS], padded with 0.

    Unknown words are left out with one warning that names them. Raises PromptError when no word says anything about
    the picture, or when more than MAX_WORDS known words are left.
    """
    words = split_words(prompt)
    known = [word for word in words if word in _NUMBERS]
    if not set(known) - set(FILLER_WORDS):
        raise PromptError(
            f"no word of the prompt {prompt!r} is known to the demo model; it knows: {', '.join(VOCABULARY[1:])}"
        )
    if len(known) > MAX_WORDS:
        raise PromptError(
            f"the prompt {prompt!r} has {len(known)} known words; at most {MAX_WORDS} are read: shorten it"
        )
    unknown = list(dict.fromkeys(word for word in words if word not in _NUMBERS))
    if unknown:
        warnings.warn(
            f"the demo model does not know {', '.join(map(repr, unknown))} in {prompt!r} and ignores it", stacklevel=2
        )
    numbers = np.zeros(MAX_WORDS, dtype=np.int64)
    numbers[: len(known)] = [_NUMBERS[word] for word in known]
    return numbers
