"""Prompts to embeddings by transformers' own classes at a tiny size, and what is said when something is missing."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.errors import ConfigError, PromptError
from pagedvid.integrations.text_encoders import T5TextEncoder
from tests.integrations.spoiled import SPOILED_FILES, spoiled_weights
from tests.integrations.tiny_parts import watch_network, write_encoder, write_tokenizer

WIDTH = 16


@pytest.fixture(params=["t5", "umt5"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def folder_of(folder: Path, kind: str = "t5") -> Path:
    write_tokenizer(folder)
    write_encoder(folder, kind, WIDTH)
    return folder


@pytest.mark.parametrize("prompt", ["a cat on the roof", "a zebra", "a cat " * 20])
def test_rows_are_those_of_the_library(kind, prompt, tmp_path):
    tokenizer, model = write_tokenizer(tmp_path), write_encoder(tmp_path, kind, WIDTH)
    encoded = T5TextEncoder(tmp_path, kind, WIDTH).encode(prompt, 12)
    tokens = tokenizer(prompt, max_length=12, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**{name: tokens[name] for name in ("input_ids", "attention_mask")}).last_hidden_state[0]
    assert torch.equal(encoded["embeddings"], expected) and expected.shape == (12, WIDTH)
    assert encoded["mask"].tolist() == [1] * min(12, len(prompt.split()) + 1) + [0] * max(0, 11 - len(prompt.split()))
    assert encoded["embeddings"].std() > 0.1


def test_padding_does_not_change_the_rows_that_count(kind, tmp_path):
    encoder = T5TextEncoder(folder_of(tmp_path, kind), kind, WIDTH)
    short, long = encoder.encode("a dog sits", 4), encoder.encode("a dog sits", 60)
    assert int(long["mask"].sum()) == 4
    torch.testing.assert_close(long["embeddings"][:4], short["embeddings"], atol=1e-5, rtol=1e-5)


def test_bfloat16_weights_give_float32_rows(tmp_path):
    write_tokenizer(tmp_path)
    write_encoder(tmp_path, "umt5", WIDTH).bfloat16().save_pretrained(tmp_path)
    rows = T5TextEncoder(tmp_path, "umt5", WIDTH).encode("a cat", 5)["embeddings"]
    assert rows.dtype == torch.float32 and bool(torch.isfinite(rows).all())


def test_the_folders_of_a_diffusers_pipeline_will_do(kind, tmp_path):
    write_tokenizer(tmp_path / "pipeline" / "tokenizer")
    write_encoder(tmp_path / "pipeline" / "text_encoder", kind, WIDTH)
    together = T5TextEncoder(folder_of(tmp_path / "one", kind), kind, WIDTH).encode("a cat", 6)["embeddings"]
    for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "text_encoder"):
        assert torch.equal(T5TextEncoder(folder, kind, WIDTH).encode("a cat", 6)["embeddings"], together)


def test_loading_prints_nothing_and_leaves_the_library_as_it_was(kind, tmp_path, capfd):
    from transformers.utils import logging

    folder = folder_of(tmp_path, kind)
    capfd.readouterr()
    for shown in (True, False):
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        T5TextEncoder(folder, kind, WIDTH)
        assert logging.is_progress_bar_enabled() == shown
    logging.enable_progress_bar()
    assert capfd.readouterr().err == ""


def test_a_sentencepiece_file_is_a_tokenizer_too(tmp_path):
    """T5 v1.1 is published with spiece.model and no tokenizer.json."""
    import sentencepiece

    write_encoder(tmp_path, "t5", WIDTH)
    lines = ["a cat sits on the roof", "a dog walks on the street", "the cat walks", "the dog sits on a mat"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(4 * lines), model_prefix=str(tmp_path / "spiece"), vocab_size=24, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    settings = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "extra_ids": 0}))
    encoder = T5TextEncoder(tmp_path, "t5", WIDTH)
    ids = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model")).encode("the cat sits")
    assert encoder._tokenizer("the cat sits")["input_ids"] == [*ids, 1]
    assert int(encoder.encode("the cat sits", 30)["mask"].sum()) == len(ids) + 1


def test_weights_of_a_whole_t5_will_do(tmp_path):
    """Published folders hold the decoder as well."""
    from transformers import T5Config, T5ForConditionalGeneration

    write_tokenizer(tmp_path)
    whole = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    ).eval()
    whole.save_pretrained(tmp_path)
    encoder = T5TextEncoder(tmp_path, "t5", WIDTH)
    tokens = encoder._tokenizer("a cat", return_tensors="pt")
    with torch.no_grad():
        expected = whole.encoder(input_ids=tokens["input_ids"]).last_hidden_state[0]
    torch.testing.assert_close(encoder.encode("a cat", 3)["embeddings"], expected)


# ---------------------------------------------------------------------- what is refused


def test_nothing_is_asked_of_the_network(kind, tmp_path, monkeypatch):
    asked = watch_network(monkeypatch)
    T5TextEncoder(folder_of(tmp_path, kind), kind, WIDTH).encode("a cat", 6)
    with pytest.raises(ConfigError, match=r"google/t5-v1_1-xxl is not a folder; .*nothing is downloaded"):
        T5TextEncoder(Path("google/t5-v1_1-xxl"), kind, WIDTH)
    assert asked == []


def test_without_the_library_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the library transformers .*pip install 'pagedvid\[text\]'"):
        T5TextEncoder(tmp_path, "t5", WIDTH)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no text encoder"),
        ("{", "holds no text encoder"),
        ('{"model_type": "t5"}', "holds no text encoder .KeyError.'d_model'.."),
        ('{"model_type": "umt5", "d_model": 16}', "is a umt5 of width 16; .* a t5 of width 16"),
        ('{"model_type": "t5", "d_model": 24}', "is a t5 of width 24; .* a t5 of width 16"),
    ],
)
def test_other_folders_are_refused(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=message):
        T5TextEncoder(tmp_path, "t5", WIDTH)


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json"])
def test_folders_that_lack_a_file_are_refused(tmp_path, gone):
    (folder_of(tmp_path) / gone).unlink()
    with pytest.raises(ConfigError, match=f"the text encoder {tmp_path} cannot be loaded"):
        T5TextEncoder(tmp_path, "t5", WIDTH)


def test_a_damaged_weights_file_is_refused(tmp_path):
    (folder_of(tmp_path) / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        T5TextEncoder(tmp_path, "t5", WIDTH)


def test_missing_weights_are_named_and_never_made_up(kind, tmp_path):
    file = folder_of(tmp_path, kind) / "model.safetensors"
    tensors = load_file(file)
    gone = "encoder.block.1.layer.0.SelfAttention.q.weight"
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"lack {gone}"):
        T5TextEncoder(tmp_path, kind, WIDTH)


def test_a_sentencepiece_tokenizer_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    write_encoder(tmp_path, "t5", WIDTH)
    (tmp_path / "spiece.model").write_bytes(b"never read")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match=r"spiece.model needs what pip install 'pagedvid\[text\]' brings"):
        T5TextEncoder(tmp_path, "t5", WIDTH)


@pytest.mark.parametrize("how", SPOILED_FILES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_what_stands_in_a_file_s_place_is_named(name, how, tmp_path):
    spoil, message = SPOILED_FILES[how]
    spoil(folder_of(tmp_path) / name)
    with pytest.raises(ConfigError, match=rf"{name} {message}"):
        T5TextEncoder(tmp_path, "t5", WIDTH)


WEIGHTS = spoiled_weights("encoder.block.0.layer.0.SelfAttention.q.weight")


@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_that_are_no_numbers_are_refused(how, kind, tmp_path):
    spoil, message = WEIGHTS[how]
    spoil(folder_of(tmp_path, kind) / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        T5TextEncoder(tmp_path, kind, WIDTH)


# ---------------------------------------------------------------------- prompts


def test_a_prompt_beyond_the_limit_is_named_with_its_tokens_and_the_limit(tmp_path):
    encoder = T5TextEncoder(folder_of(tmp_path), "t5", WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode("a cat " * 5 + "sits", 12)  # 11 words and the end
    with pytest.warns(UserWarning) as caught:
        encoder.encode("a cat " * 5 + "sits on", 12)
    (message,) = (str(warning.message) for warning in caught)
    assert message == (
        "the prompt 'a cat a cat a cat a cat a cat sits on' has 13 tokens; this model reads 12, and the rest has no "
        "effect: shorten it"
    )
    with pytest.warns(
        UserWarning, match=r"prompt '(a cat ){6} \.\.\.  (a cat ){6}' has 2002 tokens; this model reads 12"
    ):
        encoder.encode("a cat " * 1000, 12)


def test_half_a_character_is_no_text(tmp_path):
    encoder = T5TextEncoder(folder_of(tmp_path), "t5", WIDTH)
    with pytest.raises(PromptError, match=r"the prompt 'a cat \\ud83d' has half a character at 6"):
        encoder.encode("a cat \ud83d", 12)
