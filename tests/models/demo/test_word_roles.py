"""Every word in every place that asks for one role: it is understood as what it is, or refused by name."""

from __future__ import annotations

import itertools
import time
import warnings

import numpy as np
import pytest

from pagedvid.errors import PromptError
from pagedvid.models.demo.captions import read_prompt
from pagedvid.models.demo.vocabulary import (
    ATTRIBUTES,
    BACKGROUND,
    JOINING_WORD,
    SYNONYMS,
    VOCABULARY,
    role_of,
    words_for,
)
from tests.models.demo.test_captions import words_of

WORDS = tuple(word for word in (*VOCABULARY, *SYNONYMS) if role_of(SYNONYMS.get(word, word)))
"""Those that say something by themselves, as people write them."""
ROLES = {"size": "a size", "color": "a color of things", "kind": "a kind of thing", "motion": "a motion",
         BACKGROUND: "a background"}  # fmt: skip
PLACES = {
    "a red circle on a {} background": BACKGROUND,
    "a red circle moving left on a {} background": BACKGROUND,
    "{} background, a red circle": BACKGROUND,
    "a red circle on {}": BACKGROUND,
    "on the {}: a large red circle": BACKGROUND,
    "a circle with background {}": BACKGROUND,
    "a red circle moving {} on a teal background": "motion",
    "a red shape going to the {}": "motion",
}
"""Prompts with a place for a word, and the role that the place asks for."""


def quiet(prompt: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_prompt(prompt)


def said(prompt: str) -> dict[str, str]:
    """What the prompt says of its only thing and the background."""
    (thing,), background = words_of(quiet(prompt))
    return thing | ({BACKGROUND: background} if background else {})


@pytest.mark.parametrize(("place", "role"), PLACES.items())
@pytest.mark.parametrize("word", WORDS)
def test_a_place_takes_the_words_of_its_role_and_names_all_others(word, place, role):
    meaning = SYNONYMS.get(word, word)
    if role_of(meaning) == role:
        assert said(place.format(word))[role] == meaning
        return
    with pytest.raises(PromptError) as caught:
        quiet(place.format(word))
    if word == "circles" and "says 'circles', which are several things" in str(caught.value):
        return
    expected = (
        f"uses {word!r} as {ROLES[role]}, but it is {ROLES[role_of(meaning)]}; {role}s are {', '.join(words_for(role))}"
    )
    assert expected in str(caught.value)


@pytest.mark.parametrize("word", [word for word in WORDS if word != "circles"])
def test_in_front_of_a_thing_a_word_is_an_attribute_of_its_own_role_or_refused(word):
    """Sizes, colors, kinds and motions come in any order there, so a word is always what it is."""
    meaning = SYNONYMS.get(word, word)
    for place in ("a {} shape", "a {} shape on a teal background", "{} shape", "a moving {} shape"):
        if role_of(meaning) == BACKGROUND:
            with pytest.raises(PromptError, match=rf"uses '{word}' as a color of things, .* colors are red, orange, "):
                quiet(place.format(word))
        else:
            expected = {role_of(meaning): meaning} | ({BACKGROUND: "teal"} if "teal" in place else {})
            assert said(place.format(word)) == expected


@pytest.mark.parametrize(("first", "second"), [*itertools.product(words_for(BACKGROUND), ["", "red ", "moving "])])
def test_a_background_s_color_is_no_thing_s_whatever_is_between(first, second):
    with pytest.raises(PromptError, match=rf"uses '{first}' as a color of things, but it is a background"):
        quiet(f"a large {first} {second}circle on a teal background")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "a blue square moving left on a white background",
            r"'white' as a background, but it is a color of things; backgrounds are black, gray, navy, teal, brown",
        ),
        ("a square on a violet backdrop", "uses 'violet' as a background"),
        ("a grey ball", "uses 'grey' as a color of things, but it is a background"),
        ("two red circles", "says 'circles', which are several things; name each of them"),
        ("blue squares on teal", "says 'squares', which are several things"),
        ("boxes and balls", "says 'boxes', which are several things"),
        ("a circle moving left and right", "joins 'right' by 'and', but that names no thing"),
        ("a large and red circle", "joins 'a large' by 'and', but that names no thing"),
        ("a circle on the left", "uses 'left' as a background, but it is a motion"),
        ("", "the prompt is empty; the demo model knows: and, shape"),
        (" \n\t", "the prompt is empty; the demo model knows: and, shape"),
        ("\0", r"the prompt is empty"),
        ("\ud83d", "is empty|no word of the prompt"),
        ("\u202eelcric der\u202c", r"no word of the prompt '\\u202eelcric der\\u202c' is known"),
        ("دائرة حمراء", "no word of the prompt 'دائرة حمراء' is known"),
    ],
)  # fmt: skip
def test_what_people_try_first_is_answered(prompt, message):
    with pytest.raises(PromptError, match=message):
        quiet(prompt)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red ball circles on teal", {"color": "red", "kind": "circle", "motion": "circling", BACKGROUND: "teal"}),
        ("a left-moving red disc", {"motion": "left", "color": "red", "kind": "circle"}),
        ("a disc, left-moving, red", {"motion": "left", "color": "red", "kind": "circle"}),
        ("one big moving box", {"size": "large", "kind": "square"}),
        ("teal background red cross going up", {"color": "red", "kind": "cross", "motion": "up", BACKGROUND: "teal"}),
        ("red circle, black", {"color": "red", "kind": "circle", BACKGROUND: "black"}),
        ("a circle on a blue", None),
        ("red\0circle\ud83d", {"color": "red", "kind": "circle"}),
        ("\u200fred circle\u200e", {"color": "red", "kind": "circle"}),
    ],
)
def test_what_can_be_understood_is(prompt, expected):
    if expected is None:
        with pytest.raises(PromptError, match="uses 'blue' as a background"):
            quiet(prompt)
    else:
        assert said(prompt) == expected


def test_an_unknown_background_is_answered_with_the_known_ones():
    with pytest.warns(UserWarning, match=r"does not know 'pink' in .* and ignores it; backgrounds are black, gray,"):
        read_prompt("a red circle on a pink background")


@pytest.mark.parametrize("word", ["red", "moving", "on", "background", "sparkling"])
def test_endless_prompts_take_linear_time_and_short_messages(word):
    prompt = f"a red circle {word} " * 10_000
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read_prompt(prompt)
        except PromptError as error:
            assert len(str(error)) < 600
    assert all(len(str(warning.message)) < 600 for warning in caught)
    assert time.process_time() - started < 5  # a tenth of it; quadratic would be minutes


def test_every_attribute_has_words_and_no_word_two_roles():
    roles = [words_for(role) for role in (*ATTRIBUTES, BACKGROUND)]
    assert sum(map(len, roles)) == len(set(itertools.chain(*roles))) and JOINING_WORD not in WORDS
