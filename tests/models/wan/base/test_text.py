"""Rows for cross-attention: from an encoder, from a file, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.errors import ConfigError, PromptError
from pagedvid.models.wan.base.text import PromptReader, cleaned

ROWS = torch.arange(12.0).view(3, 4)


class Encoder:
    """One row per word, filled with the word's length; noise in the rows of padding."""

    def __init__(self):
        self.asked = []

    def encode(self, prompt, max_tokens):
        self.asked.append(prompt)
        words = prompt.split()
        rows = torch.full((max_tokens, 4), 99.0)
        rows[: len(words)] = torch.tensor([float(len(word)) for word in words])[:, None]
        return {"embeddings": rows, "mask": (torch.arange(max_tokens) < len(words)).long()}


def reader(encoder=None):
    return PromptReader("wan", encoder, num_tokens=5, width=4)


def test_an_encoders_rows_without_those_of_padding():
    encoder = Encoder()
    rows = reader(encoder).rows({"cond": " a  red &amp;amp; blue\tcat ", "uncond": "ugly"}, {})
    assert encoder.asked == ["a red & blue cat", "ugly"]
    assert rows["cond"][:, 0].tolist() == [1, 3, 1, 4, 3]
    assert rows["uncond"].tolist() == [[4.0] * 4]


def test_zeros_behind_the_rows_when_a_forward_reads_them():
    like = torch.zeros(1, dtype=torch.bfloat16)
    stacked = reader().stacked([ROWS, ROWS[:1]], like)
    assert stacked.shape == (2, 5, 4) and stacked.dtype == torch.bfloat16
    assert stacked[0, :3].tolist() == ROWS.tolist() and stacked[1, :1].tolist() == ROWS[:1].tolist()
    assert not stacked[0, 3:].any() and not stacked[1, 1:].any()


@pytest.mark.parametrize("as_file", [True, False])
def test_rows_of_a_request_go_before_the_encoder(tmp_path, as_file):
    given = {"prompt_embeds": ROWS[None].clone(), "negative_prompt_embeds": ROWS[:2].clone()}
    save_file(given, tmp_path / "rows.safetensors")
    source = tmp_path / "rows.safetensors" if as_file else given
    rows = reader().rows({"cond": "not encoded", "uncond": ""}, {"embeddings": source})
    assert rows["cond"].tolist() == ROWS.tolist() and rows["uncond"].tolist() == ROWS[:2].tolist()


def test_a_negative_prompt_that_is_not_given_is_encoded():
    encoder = Encoder()
    rows = reader(encoder).rows({"cond": "x", "uncond": "bad"}, {"embeddings": {"prompt_embeds": ROWS}})
    assert encoder.asked == ["bad"] and rows["uncond"].tolist() == [[3.0] * 4]


def test_without_encoder_and_rows_the_error_names_both():
    with pytest.raises(PromptError, match=r"model.text_encoder.*prompt_embeds"):
        reader().rows({"cond": "a cat"}, {})
    with pytest.raises(PromptError, match="negative_prompt_embeds"):
        reader().rows({"cond": "a cat", "uncond": ""}, {"embeddings": {"prompt_embeds": ROWS}})


@pytest.mark.parametrize(
    ("embeddings", "words"),
    [
        ({}, "hold nothing.*needs prompt_embeds"),
        ({"negative_prompt_embeds": ROWS, "prompt_embeds": ROWS}, "takes prompt_embeds"),  # no guidance, no such branch
        ({"prompt_embeds": ROWS[:, :3]}, r"shape \[3, 3\]; wan takes \[rows, 4\] of at most 5"),
        ({"prompt_embeds": torch.zeros(6, 4)}, "at most 5 rows"),
        ({"prompt_embeds": torch.zeros(2, 3, 4)}, "shape"),
        ({"prompt_embeds": torch.zeros(0, 4)}, "shape"),
        ({"prompt_embeds": ROWS * float("nan")}, "NaN"),
    ],
)
def test_rows_that_do_not_fit_are_refused(embeddings, words):
    with pytest.raises(ConfigError, match=words):
        reader().rows({"cond": ""}, {"embeddings": embeddings})


def test_unknown_inputs_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='takes the input "embeddings" only; remove trajectory'):
        reader(Encoder()).rows({"cond": ""}, {"trajectory": "x"})
    for dtype in (torch.int8, torch.float8_e4m3fn):
        with pytest.raises(ConfigError, match=r"prompt_embeds holds (int8|float8_e4m3fn); allowed are float64"):
            reader().rows({"cond": ""}, {"embeddings": {"prompt_embeds": torch.ones(2, 4).to(dtype)}})
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        reader().rows({"cond": ""}, {"embeddings": tmp_path / "broken.safetensors"})


def test_prompts_are_cleaned_as_in_training():
    assert cleaned("  a &lt;b&gt;\n c ") == "a <b> c"
