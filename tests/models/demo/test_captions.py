"""Captions name what a scene shows; prompts become word numbers; unknown words are named."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from pagedvid.errors import PromptError
from pagedvid.models.demo.captions import (
    FILLER_WORDS,
    GENERAL_WORDS,
    MAX_WORDS,
    MOTION_WORDS,
    SYNONYMS,
    VOCABULARY,
    caption,
    encode_words,
    split_words,
)
from pagedvid.models.demo.world import MOTIONS, Scene, Thing, random_scene


def words_of(numbers: np.ndarray) -> list[str]:
    return [VOCABULARY[number] for number in numbers if number]


def test_the_plain_caption_is_a_sentence() -> None:
    scene = Scene((Thing("circle", "red", "large", "left", 0, 0, 0),), "black")
    assert caption(scene) == "a large red circle moving left on a black background"


@pytest.mark.parametrize("seed", range(30))
def test_a_caption_goes_to_numbers_and_back_with_every_attribute(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    thing = scene.things[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = encode_words(caption(scene))
        varied = encode_words(caption(scene, rng, drop=0.0))
    assert words_of(plain) == split_words(caption(scene))
    for numbers in (plain, varied):
        assert numbers.shape == (MAX_WORDS,) and numbers.dtype == np.int64
        said = set(words_of(numbers)) - {*FILLER_WORDS, *GENERAL_WORDS}
        assert said == {thing.size, thing.color, thing.kind, thing.motion, scene.background}


def test_attributes_are_dropped_at_random() -> None:
    rng = np.random.default_rng(0)
    scene = random_scene(rng)
    captions = [caption(scene, rng, drop=0.5) for _ in range(200)]
    for word in (scene.things[0].color, scene.things[0].kind, scene.background):
        named = sum(word in text.split() for text in captions)
        assert 50 < named < 150


def test_two_things_are_joined() -> None:
    one, two = Thing("circle", "red", "large", "left", 0, 0, 0), Thing("square", "blue", "small", "still", 0, 0, 0)
    text = caption(Scene((one, two), "teal"))
    assert text == "a large red circle moving left and a small blue square staying still on a teal background"


def test_every_motion_and_every_synonym_has_a_word() -> None:
    assert set(MOTION_WORDS) == set(MOTIONS)
    assert set(SYNONYMS.values()) <= set(VOCABULARY)
    assert not set(SYNONYMS) & set(VOCABULARY)
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_case_punctuation_and_synonyms_do_not_matter() -> None:
    assert np.array_equal(
        encode_words("A BIG red, Disc; grey backdrop!"), encode_words("a large red circle gray background")
    )


def test_an_unknown_word_is_named_in_a_warning_and_left_out() -> None:
    with pytest.warns(UserWarning, match=r"'sparkling'.*'dragon'"):
        numbers = encode_words("a sparkling red dragon")
    assert words_of(numbers) == ["a", "red"]


@pytest.mark.parametrize("prompt", ["", "dragon", "a dragon on the moon", "...", "and the"])
def test_a_prompt_that_says_nothing_known_is_an_error_with_the_vocabulary(prompt: str) -> None:
    with pytest.raises(PromptError, match=r"circle.*teal"):
        encode_words(prompt)


def test_a_prompt_that_is_too_long_is_an_error_with_both_lengths() -> None:
    with pytest.raises(PromptError, match=r"20 known words.*16"):
        encode_words("red " * 20)
