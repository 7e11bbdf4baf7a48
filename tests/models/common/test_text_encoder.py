"""Prompts are encoded once, and the encoder is in memory only while it must be."""

from __future__ import annotations

import weakref

import pytest
import torch

from pagedvid.errors import PromptError
from pagedvid.models.common import text_encoder
from pagedvid.models.common.text_encoder import RememberingTextEncoder

WIDTH = 3


class Counting:
    """Logs what it encodes; a prompt has as many rows as words, and padding rows that are not zero."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.itself = self  # a cycle, as large modules may have: dropping the name does not free it

    def encode(self, prompt: str, max_tokens: int) -> dict[str, torch.Tensor]:
        self.log.append(prompt)
        num_rows = len(prompt.split())
        rows = torch.full((max_tokens, WIDTH), float(len(prompt)))
        return {"embeddings": rows, "mask": (torch.arange(max_tokens) < num_rows).long()}


class Loader:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.loaded: list[weakref.ref] = []

    def __call__(self) -> Counting:
        encoder = Counting(self.log)
        self.loaded.append(weakref.ref(encoder))
        return encoder

    @property
    def num_alive(self) -> int:
        return sum(encoder() is not None for encoder in self.loaded)


def test_a_prompt_is_encoded_once_and_always_the_same():
    loader = Loader()
    text = RememberingTextEncoder(loader)
    first, again = text.encode("a cat", 4), text.encode("a cat", 4)
    assert loader.log == ["a cat"] and len(loader.loaded) == 1
    expected = torch.tensor([[5.0] * WIDTH] * 2 + [[0.0] * WIDTH] * 2)
    for encoded in (first, again):
        assert torch.equal(encoded["embeddings"], expected) and encoded["mask"].tolist() == [1, 1, 0, 0]
    text.encode("a cat", 5)
    assert loader.log == ["a cat", "a cat"]  # another length may cut otherwise


def test_known_prompts_leave_no_encoder_behind():
    loader = Loader()
    text = RememberingTextEncoder(loader)
    text.encode_all(["a cat", "", "a dog", "a cat"], 4)
    assert loader.log == ["a cat", "", "a dog"] and len(loader.loaded) == 1
    assert not text.is_loaded and loader.num_alive == 0
    assert text.encode("a dog", 4)["mask"].sum() == 2 and text.encode("", 4)["embeddings"].sum() == 0
    assert len(loader.loaded) == 1


def test_a_later_prompt_loads_the_encoder_again_until_it_is_released():
    loader = Loader()
    text = RememberingTextEncoder(loader)
    text.encode_all(["a cat"], 4)
    for prompt in ("a dog", "a bird", "a cat"):
        text.encode(prompt, 4)
    assert len(loader.loaded) == 2 and loader.num_alive == 1 and text.is_loaded
    text.release()
    assert loader.num_alive == 0
    text.encode("a bird", 4)
    assert loader.num_alive == 0 and loader.log == ["a cat", "a dog", "a bird"]


def test_nothing_is_loaded_before_it_is_needed():
    loader = Loader()
    text = RememberingTextEncoder(loader)
    text.encode_all([], 4)
    assert loader.loaded == []


def test_the_longest_unused_prompts_are_forgotten(monkeypatch):
    monkeypatch.setattr(text_encoder, "MIN_REMEMBERED", 2)
    loader = Loader()
    text = RememberingTextEncoder(loader)
    for prompt in ("one", "two", "one", "three", "one", "two"):
        text.encode(prompt, 4)
    assert loader.log == ["one", "two", "three", "two"]


def test_as_many_are_remembered_as_were_known_beforehand(monkeypatch):
    monkeypatch.setattr(text_encoder, "MIN_REMEMBERED", 2)
    loader = Loader()
    text = RememberingTextEncoder(loader)
    prompts = [f"prompt {number}" for number in range(5)]
    text.encode_all(prompts, 4)
    for prompt in prompts:
        text.encode(prompt, 4)
    assert len(loader.log) == 5


def test_a_prompt_that_cannot_be_encoded_ends_no_other(monkeypatch):
    def encode(self, prompt, max_tokens):
        if prompt == "bad":
            raise PromptError("bad is no prompt")
        return original(self, prompt, max_tokens)

    original = Counting.encode
    monkeypatch.setattr(Counting, "encode", encode)
    loader = Loader()
    text = RememberingTextEncoder(loader)
    text.encode_all(["a cat", "bad", "a dog"], 4)
    assert loader.log == ["a cat", "a dog"] and loader.num_alive == 0
    with pytest.raises(PromptError, match="bad is no prompt"):
        text.encode("bad", 4)
