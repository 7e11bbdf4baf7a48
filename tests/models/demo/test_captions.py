"""Captions name what a scene shows; prompts fill slots; what cannot be understood is named."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from pagedvid.errors import PromptError
from pagedvid.models.demo.captions import caption, read_prompt, split_words
from pagedvid.models.demo.vocabulary import ABSENT, ATTRIBUTES, NUM_SLOTS, NUM_VALUES, SYNONYMS, VOCABULARY
from pagedvid.models.demo.world import BACKGROUNDS, Scene, Thing, random_scene

RED_CIRCLE = Thing("circle", "red", "large", "left", 16, 16)
BLUE_SQUARE = Thing("square", "blue", "small", "still", 16, 16)


def words_of(slots: np.ndarray) -> tuple[list[dict[str, str]], str | None]:
    """What slots stand for: the attributes named of each thing, and the background."""
    *values, background = slots.tolist()
    things = []
    for start in range(0, len(values), len(ATTRIBUTES)):
        own = values[start : start + len(ATTRIBUTES)]
        if own[0] != ABSENT:
            things.append({name: words[v - 1] for (name, words), v in zip(ATTRIBUTES.items(), own, strict=True) if v})
    return things, list(BACKGROUNDS)[background - 1] if background else None


def attributes(thing: Thing) -> dict[str, str]:
    return {name: getattr(thing, name) for name in ATTRIBUTES}


def test_the_plain_caption_is_a_sentence() -> None:
    assert caption(Scene((RED_CIRCLE,), "black")) == "a large red circle moving left on a black background"


def test_two_things_are_joined() -> None:
    text = caption(Scene((RED_CIRCLE, BLUE_SQUARE), "teal"))
    assert text == "a large red circle moving left and a small blue square staying still on a teal background"


@pytest.mark.parametrize("num_things", [1, 2])
@pytest.mark.parametrize("seed", range(30))
def test_a_caption_goes_to_slots_and_back_with_every_attribute(seed: int, num_things: int) -> None:
    scene = random_scene(np.random.default_rng(seed), num_things)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slots = read_prompt(caption(scene))
    assert slots.shape == (NUM_SLOTS,) and slots.dtype == np.int64
    assert slots.min() >= 0 and slots.max() < NUM_VALUES
    assert words_of(slots) == ([attributes(thing) for thing in scene.things], scene.background)


def test_attributes_are_dropped_at_random() -> None:
    rng = np.random.default_rng(0)
    captions = [split_words(caption(Scene((RED_CIRCLE,), "teal"), rng, drop=0.5)) for _ in range(200)]
    for word in ("red", "circle", "large", "left", "teal"):
        assert 60 < sum(word in words for words in captions) < 140


@pytest.mark.parametrize("drop", [0.5, 1.0])
def test_what_a_caption_leaves_out_stays_open(drop: float) -> None:
    rng = np.random.default_rng(1)
    scene = Scene((RED_CIRCLE, BLUE_SQUARE), "teal")
    for _ in range(20):
        things, background = words_of(read_prompt(caption(scene, rng, drop)))
        assert len(things) == 2
        for said, thing in zip(things, scene.things, strict=True):
            assert said.items() <= attributes(thing).items()
        assert background in (None, "teal") and (drop < 1 or (background is None and not any(things)))


def test_the_order_of_words_case_punctuation_and_synonyms_do_not_matter() -> None:
    plain = read_prompt("a large red circle moving left on a gray background")
    for other in ("Left-moving RED, Disc: BIG; grey backdrop!", "on gray: circle red large left"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(read_prompt(other), plain)


def test_the_words_are_distinct_and_every_synonym_has_one() -> None:
    assert set(SYNONYMS.values()) <= set(VOCABULARY)
    assert not set(SYNONYMS) & set(VOCABULARY)
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_an_unknown_word_is_named_in_a_warning_and_left_out() -> None:
    with pytest.warns(UserWarning, match=r"'sparkling'.*'dragon'"):
        slots = read_prompt("a sparkling red dragon")
    assert words_of(slots) == ([{"color": "red"}], None)


@pytest.mark.parametrize("prompt", ["", "dragon", "a dragon on the moon", "...", "and the"])
def test_a_prompt_that_says_nothing_known_is_an_error_with_the_vocabulary(prompt: str) -> None:
    with pytest.raises(PromptError, match=r"circle.*teal"):
        read_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a red blue circle", r"the colors 'red' and 'blue'; choose one of red, orange, .*joined by 'and'"),
        ("a tiny huge circle", r"the sizes 'tiny' and 'huge'; choose one of small, large,"),
        ("a ball moving up, box", r"the kinds 'ball' and 'box'; choose one of circle, square,"),
        ("a circle moving left, right", r"the motions 'left' and 'right'"),
        ("a red circle and a blue one and a green square", r"describes 3 things; at most 2"),
        ("a circle on teal on black", r"backgrounds teal, black; name one"),
    ],
)
@pytest.mark.filterwarnings("ignore:the demo model does not know")
def test_a_contradiction_is_an_error_that_names_both_sides(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompt(prompt)


def test_a_stray_and_joins_nothing() -> None:
    assert words_of(read_prompt("and a red circle and")) == ([{"color": "red", "kind": "circle"}], None)
