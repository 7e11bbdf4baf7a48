"""Special tokens against a restatement of what the published program does to a video's captions: its function
`pad_special_token` puts one row after another in front of them, and cuts. Videos must be those of caption files that
hold the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pagedvid.config.sections import Config, ModelConfig, frame_settings
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.models.magi1.pipeline import MagiModel
from pagedvid.models.magi1.special_tokens import NAMES, SpecialTokens, read_special_tokens
from pagedvid.models.magi1.weights import load_magi, special_tokens_of
from tests.models.magi1.recordings import DATA, NETWORK_A, ROLLOUTS, Rollout, engine_of, play
from tests.models.specs import spec_of

CHANNELS, LONGEST = NETWORK_A.caption_channels, NETWORK_A.caption_max_length
PUBLISHED_ORDER = (
    ("static_first_frames", 2),
    ("dynamic_first_frames", 3),
    ("borderness", 4),
    ("hq", 1),
    ("3d_model", 15),
    ("2d_anime", 16),
    ("duration", None),
)
"""The order in which the program looks at its switches, and the rows of `other_tokens`."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "special_tokens.npz",
        caption_token=draw.normal(size=(1, CHANNELS)),
        logo_token=draw.normal(size=(1, CHANNELS)),
        other_tokens=draw.normal(size=(100, CHANNELS)),
    )
    return tmp_path / "special_tokens.npz"


def put_in_front(row: np.ndarray, captions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[1, C] in front of [chunks, L, C], and its mask; cut to the greatest length."""
    rows = torch.from_numpy(row.astype(np.float16)).float().expand(len(captions), 1, CHANNELS)
    ones = torch.ones(len(captions), 1)
    return torch.cat([rows, captions], dim=1)[:, :LONGEST], torch.cat([ones, mask], dim=1)[:, :LONGEST]


def padded(file: Path, names: Sequence[str], caption: Tensor, num_chunks: int) -> dict[str, Tensor]:
    """The content of a caption file with a caption for each chunk, each [L, C] with zeros behind the prompt."""
    arrays = np.load(file)
    captions = torch.zeros(num_chunks, LONGEST, CHANNELS)
    captions[:, : len(caption)] = caption
    mask = (torch.arange(LONGEST) < len(caption)).float().repeat(num_chunks, 1)
    for name, row in PUBLISHED_ORDER:
        if name in names and row is not None:
            captions, mask = put_in_front(arrays["other_tokens"][row : row + 1], captions, mask)
        elif name in names:
            rows = [7 + min(num_chunks - 1 - chunk, 7) for chunk in range(num_chunks)]
            pairs = [
                put_in_front(
                    arrays["other_tokens"][row : row + 1], captions[chunk : chunk + 1], mask[chunk : chunk + 1]
                )
                for chunk, row in enumerate(rows)
            ]
            captions, mask = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return {"embeddings": captions, "mask": mask}


class OneCaption:
    """A text encoder that knows one caption."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def encode(self, prompt: str, max_tokens: int) -> dict[str, Tensor]:
        rows = torch.cat([self.rows, torch.zeros(max_tokens - len(self.rows), CHANNELS)])
        return {"embeddings": rows, "mask": (torch.arange(max_tokens) < len(self.rows)).long()}


def caption_of(num_rows: int) -> Tensor:
    return torch.randn(num_rows, CHANNELS, generator=torch.Generator().manual_seed(1))


def model_of(rollout: Rollout, caption: Tensor, tokens: SpecialTokens | None) -> MagiModel:
    network = load_magi(rollout.config, DATA / "weights_a.safetensors").network
    return MagiModel(rollout.config, network, OneCaption(caption), tokens)


def video(model: MagiModel, rollout: Rollout, num_frames: int, inputs) -> Tensor:
    engine = engine_of(model, rollout.num_steps)
    engine.submit(VideoRequest("a", "a cat", num_frames, inputs=inputs))
    return play(engine).final["a"]


@pytest.mark.parametrize(
    ("names", "num_rows"), [(("hq",), 5), (("duration", "hq"), 5), (("duration",), LONGEST - 1), (NAMES, LONGEST - 1)]
)
def test_a_prompt_is_what_the_caption_file_of_the_published_program_is(file, names, num_rows):
    rollout, caption, num_chunks = ROLLOUTS["w4_distill"], caption_of(num_rows), 10
    tokens = read_special_tokens(file, names, False, CHANNELS)
    given = {"embeddings": padded(file, names, caption, num_chunks)}
    made = video(model_of(rollout, caption, tokens), rollout, 3 * num_chunks - 1, {})
    expected = video(model_of(rollout, caption, None), rollout, 3 * num_chunks - 1, given)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    without = video(model_of(rollout, caption, None), rollout, 3 * num_chunks - 1, {})
    assert (without - made).abs().max() > 1e-3


def test_given_frames_do_not_count_as_what_follows(file):
    """A whole given chunk, and a third of the next one."""
    rollout, caption = ROLLOUTS["w4_prefix"], caption_of(6)
    prefix = {"latents": torch.cat([rollout.data["prefix"], rollout.data["prefix"][:, :1]], dim=1)[:, :4]}
    tokens = read_special_tokens(file, ("duration", "hq"), False, CHANNELS)
    made = video(model_of(rollout, caption, tokens), rollout, 8, {"prefix": prefix})
    captions = padded(file, ("duration", "hq"), caption, 4)
    captions["mask"][0] = 0
    expected = video(model_of(rollout, caption, None), rollout, 8, {"embeddings": captions, "prefix": prefix})
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_caption_files_are_taken_as_they_are(file):
    rollout, caption = ROLLOUTS["w4"], caption_of(6)
    tokens = read_special_tokens(file, NAMES, False, CHANNELS)
    videos = [video(model_of(rollout, caption, given), rollout, 7, rollout.inputs) for given in (tokens, None)]
    assert torch.equal(*videos)


def test_the_null_text_begins_with_those_of_a_negative_prompt(file):
    """As if the learned null caption began with them: 4 rows, then 46 of its 50."""
    rollout, caption = ROLLOUTS["w4_cfg3"], caption_of(6)
    tokens = read_special_tokens(file, (), True, CHANNELS)
    arrays = np.load(file)
    front = [arrays["other_tokens"][4:5], arrays["other_tokens"][0:1], arrays["logo_token"], arrays["caption_token"]]
    rows = torch.from_numpy(np.concatenate(front).astype(np.float16)).float()
    network = load_magi(rollout.config, DATA / "weights_a.safetensors").network
    null = network.y_embedder.null_caption_embedding.data
    network.y_embedder.null_caption_embedding.data = torch.cat([rows, null[:46], null[50:]])
    expected = video(MagiModel(rollout.config, network, OneCaption(caption)), rollout, 7, {})
    made = video(model_of(rollout, caption, tokens), rollout, 7, {})
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert (video(model_of(rollout, caption, None), rollout, 7, {}) - made).abs().max() > 1e-3


def test_a_video_that_becomes_longer_hears_of_it(file):
    """From the steps on that follow; before them the chunks in flight had other rows."""
    rollout, caption = ROLLOUTS["w4"], caption_of(6)
    model = model_of(rollout, caption, read_special_tokens(file, ("duration",), False, CHANNELS))
    arrays, embed = np.load(file), model.network.y_embedder.tokens
    for num_frames, num_later in ((6, 1), (7, 2), (24, 7), (60, 7)):
        row = embed(torch.from_numpy(arrays["other_tokens"][7 + num_later].astype(np.float16)).float()[None])
        assert torch.equal(model.prepare("a cat", {}, num_frames).caption(0)[:1], row)
    engine = engine_of(model, rollout.num_steps)
    engine.submit(VideoRequest("a", "a cat", 12))
    engine.step()
    engine.extend("a", 18)
    assert play(engine).final["a"].shape[1] == 18


# ---------------------------------------------------------------------- settings and files


def config_of(**settings) -> ModelConfig:
    return ModelConfig(name="magi-1-4.5b", **settings)


def test_auto_is_those_of_the_published_scripts_if_the_file_is_there(file, tmp_path, caplog):
    weights, encoder = file.parent, str(tmp_path / "t5")
    shipped = read_special_tokens(file, ("duration", "hq"), False, CHANNELS)
    for place in (weights, weights / "model.safetensors"):
        found = special_tokens_of(config_of(text_encoder=encoder), place, CHANNELS)
        assert [len(rows) for rows in found.captions] == [2] * 8 and len(found.null) == 0
        assert all(torch.equal(*pair) for pair in zip(found.captions, shipped.captions, strict=True))
    assert special_tokens_of(config_of(text_encoder=encoder, special_tokens=[]), weights, CHANNELS) is None
    assert not caplog.records
    file.unlink()
    assert special_tokens_of(config_of(), weights, CHANNELS) is None and not caplog.records
    assert special_tokens_of(config_of(text_encoder=encoder), weights, CHANNELS) is None
    assert "prompts get no special tokens" in caplog.text


@pytest.mark.parametrize("settings", [{"special_tokens": ["hq"], "text_encoder": "t5"}, {"null_special_tokens": True}])
def test_tokens_that_are_named_need_their_file(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"special_tokens\.npz is missing, .* copy it from example/assets"):
        special_tokens_of(config_of(**settings), tmp_path, CHANNELS)


def test_tokens_that_are_named_need_prompts_that_are_encoded(file):
    with pytest.raises(ConfigError, match=r"set model\.text_encoder, or leave model\.special_tokens out"):
        special_tokens_of(config_of(special_tokens=["hq"]), file.parent, CHANNELS)
    found = special_tokens_of(config_of(null_special_tokens=True), file.parent, CHANNELS)
    assert len(found.null) == 4


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"model\.special_tokens has 'hd'; allowed are duration, 2d_anime, .*, hq"):
        spec_of("magi-1-4.5b", special_tokens=("hq", "hd"))
    with pytest.raises(ConfigError, match=r"self-forcing has no special tokens; remove model\.special_tokens"):
        spec_of("self-forcing", special_tokens=("hq",))


@pytest.mark.parametrize("wrong", [["hq", "hq"], "hq", ["a b"], [1], None])
def test_what_is_no_list_of_words_is_refused(wrong):
    with pytest.raises(ConfigError, match="a list of different words, such as"):
        config_of(special_tokens=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other_tokens": None}, r"other_tokens is missing; expected are .* \[17 or more, 32\]"),
        ({"other_tokens": np.zeros((16, CHANNELS))}, r"other_tokens is float64 \[16, 32\]"),
        ({"logo_token": np.zeros((1, 7))}, r"logo_token is float64 \[1, 7\]"),
        ({"logo_token": np.zeros((1, CHANNELS), dtype=int)}, r"logo_token is int64 \[1, 32\]"),
        ({"caption_token": np.float64(3)}, r"caption_token is float64 \[\]"),
        ({"caption_token": np.full((1, CHANNELS), np.nan)}, "caption_token holds NaN, infinity, or numbers beyond"),
        ({"caption_token": np.full((1, CHANNELS), 1e6)}, "caption_token holds NaN, infinity, or numbers beyond"),
    ],
)
def test_files_that_hold_something_else_are_refused(file, changes, message):
    arrays = {**np.load(file), **changes}
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ConfigError, match=message):
        read_special_tokens(file, ("hq",), True, CHANNELS)


def test_a_video_with_other_special_tokens_is_another_one():
    one, other = (Config(model=config_of(special_tokens=names)) for names in ("auto", ["hq"]))
    assert frame_settings(one)["model.special_tokens"] == "auto"
    assert frame_settings(other)["model.special_tokens"] == ["hq"]
