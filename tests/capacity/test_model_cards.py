"""The cards in configs/models: published sizes come out of them, and wrong cards are refused by name and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity import card_files
from pagedvid.capacity.card_files import all_cards, find_card, presets, read_card
from pagedvid.capacity.cards import Resolution
from pagedvid.errors import ConfigError
from pagedvid.models.demo.weights import load_demo
from pagedvid.models.walk.weights import load_walk
from tests.models.specs import spec_of

FOLDER = Path(__file__).parents[2] / "configs" / "models"
CARDS = {path.stem: read_card(path) for path in sorted(FOLDER.glob("*.yaml"))}
PUBLISHED = [(name, published) for name, card in CARDS.items() for published in card.published]


@pytest.mark.parametrize(
    ("name", "published"), PUBLISHED, ids=[f"{name} {published.look_back}" for name, published in PUBLISHED]
)
def test_published_sizes_come_out_of_the_card(name, published):
    card = CARDS[name]
    size = card.stream_size(card.resolution, published.look_back)
    num_bytes = card.original_copies * size.shape.page_bytes * size.pages(StreamCodecs("bf16"))
    assert num_bytes == pytest.approx(published.num_bytes, rel=0.01), published.source


@pytest.mark.parametrize(
    ("name", "window", "num_bytes"),
    [
        ("self-forcing", "0+6", 6.04e9),  # 21 frames: kv_cache_size 32760 in guandeh17/Self-Forcing
        ("longcat-13.6b", "19frames", 22272 * 2**20),  # Quant-VideoGen, arXiv 2602.02958
        ("hy-worldplay-5b", "48frames", 29700 * 2**20),  # Quant-VideoGen, arXiv 2602.02958
        ("magi-1-4.5b", "0+9", 16.9e9),  # 10 s of the buffer of example/4.5B/4.5B_config.json
        ("krea-14b", "0+6", 26.8e9),  # 21 frames: "KV cache up to 25GB" in krea-ai/realtime-video
    ],
)
def test_the_figures_that_must_be_there_are(name, window, num_bytes):
    (published,) = CARDS[name].published
    assert str(published.look_back) == window
    assert published.num_bytes == pytest.approx(num_bytes, rel=0.003)


def test_every_model_of_the_survey_has_a_card():
    assert set(CARDS) == {
        "demo", "hy-worldplay-5b", "hy-worldplay-8b", "krea-14b", "lingbot-14b", "longcat-13.6b", "longlive-2-5b",
        "magi-1-24b", "magi-1-4.5b", "matrix-game-2", "self-forcing", "skyreels-v2-1.3b", "skyreels-v2-14b",
        "walk",
    }  # fmt: skip
    assert all(card.name == name for name, card in CARDS.items())


@pytest.mark.parametrize(
    ("name", "token_bytes", "frame_tokens", "latent_rate"),
    [
        ("magi-1-4.5b", 139_264, 2025, 6),
        ("magi-1-24b", 196_608, 3600, 6),
        ("skyreels-v2-1.3b", 184_320, 2040, 6),
        ("skyreels-v2-14b", 819_200, 2040, 6),
        ("hy-worldplay-8b", 442_368, 1560, 6),
        ("hy-worldplay-5b", 368_640, 880, 6),
        ("self-forcing", 184_320, 1560, 4),
        ("krea-14b", 819_200, 1560, 4),
        ("longcat-13.6b", 786_432, 1560, 3.75),
        ("longlive-2-5b", 368_640, 880, 6),
        ("lingbot-14b", 819_200, 1560, 4),
        ("matrix-game-2", 184_320, 880, 6.25),
    ],
)
def test_bytes_per_token_tokens_per_frame_and_rate(name, token_bytes, frame_tokens, latent_rate):
    card = CARDS[name]
    assert card.shape.bf16_bytes(1) == token_bytes
    assert card.tokens_per_frame(card.resolution) == frame_tokens
    assert card.latent_frames_per_second == latent_rate


@pytest.mark.parametrize(("name", "load"), [("demo", load_demo), ("walk", load_walk)])
def test_cards_of_built_in_models_are_these_models(name, load):
    card, spec = CARDS[name], spec_of(name)
    geometry = spec.geometry
    assert card.num_layers == geometry.num_layers
    assert (card.num_query_heads, card.num_kv_heads) == (geometry.num_query_heads, geometry.num_kv_heads)
    assert card.head_dim == geometry.head_dim
    assert card.tokens_per_frame(card.resolution) == geometry.tokens_per_frame
    assert card.frames_per_chunk == geometry.frames_per_chunk
    assert card.branches == geometry.branches
    assert str(card.window) == f"{spec.window.sink_chunks}+{spec.window.recent_chunks}"
    model = load()
    assert card.frames_per_second == model.frames_per_second
    num_parameters = sum(parameter.numel() for parameter in model.network.parameters())
    assert card.weights["bf16"] == pytest.approx(2 * num_parameters, rel=0.05)


def write_card(folder: Path, **changes: object) -> Path:
    values = yaml.safe_load((FOLDER / "self-forcing.yaml").read_text())
    values.update(changes)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_layer", 3, r'mine.yaml: unknown key "num_layer" - did you mean "num_layers"\?'),
        ("num_layers", 0, "mine.yaml: num_layers is 0; allowed is a whole number from 1 to 256"),
        ("num_layers", "many", "mine.yaml: num_layers is 'many'"),
        ("head_dim", 127, "mine.yaml: head_dim is 127; it must be even"),
        ("num_query_heads", 13, "must be a multiple of num_kv_heads 12"),
        ("patch", [1, 2], "mine.yaml: patch is .* three whole numbers"),
        ("resolution", "832", "mine.yaml: resolution: resolution is '832'"),
        ("resolution", "832x481", "mine.yaml: resolution 832x481 does not fit"),
        ("window", {"sink_chunks": 1}, "mine.yaml: window is .*recent_chunks"),
        ("window", "6", "mine.yaml: window is '6'"),
        ("weights", {"int3": "1GB"}, "mine.yaml: weights is"),
        ("weights", {"bf16": "much"}, "mine.yaml: weights: 'much' is not a size"),
        ("weights", {"bf16": "2.84GB", "fp8": "1GB"}, "mine.yaml: weights in fp8 follow from block; remove fp8"),
        ("block", {"bf16": "1GB"}, "mine.yaml: block is .*; allowed is bytes of one block in both formats"),
        ("block", {"bf16": "1GB", "fp8": "1MB"}, "30 blocks of 954 MiB are not less than weights: {bf16: 2.65 GiB}"),
        ("branches", "cond", "mine.yaml: branches is 'cond'"),
        ("forwards_per_step", 0.5, "mine.yaml: forwards_per_step is 0.5; allowed is a number from 1 to 16"),
        ("branches", ["a", "a"], "mine.yaml: branches is"),
        ("frames_per_second", -1, "mine.yaml: frames_per_second is -1"),
        ("published", [{"window": "0+6"}], "mine.yaml: published is"),
        ("title", None, 'mine.yaml: the key "title" is missing'),
    ],
)
def test_wrong_cards(tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=message):
        read_card(write_card(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("- 1", "must consist of `key: value` lines"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b\n", '"name" is written twice'),
        ("window: {sink_chunks: 1, sink_chunks: 2}", '"sink_chunks" is written twice'),
    ],
)
def test_files_that_are_no_cards(tmp_path, written, message):
    path = tmp_path / "mine.yaml"
    path.write_text(written)
    with pytest.raises(ConfigError, match=message):
        read_card(path)


def test_a_card_of_ones_own(tmp_path):
    path = write_card(tmp_path, name="mine", num_layers=2)
    assert find_card(str(path)).num_layers == 2
    assert find_card("mine", tmp_path).num_layers == 2
    assert set(all_cards(tmp_path)) == {*CARDS, "mine"}


def test_a_card_of_ones_own_wins_over_a_shipped_one(tmp_path):
    write_card(tmp_path, num_layers=2)
    assert find_card("self-forcing", tmp_path).num_layers == 2


def test_two_cards_of_one_name_in_a_folder(tmp_path):
    write_card(tmp_path).rename(tmp_path / "a.yaml")
    write_card(tmp_path)
    with pytest.raises(ConfigError, match="both describe 'self-forcing'"):
        all_cards(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        all_cards(tmp_path / "none")


def test_unknown_models_get_the_closest_names():
    with pytest.raises(ConfigError, match="did you mean self-forcing"):
        find_card("selfforcing")
    with pytest.raises(ConfigError, match="known are demo, "):
        find_card("???")
    with pytest.raises(ConfigError, match="does not exist"):
        find_card("nowhere.yaml")


def test_presets_are_read_like_configurations(tmp_path, monkeypatch):
    (tmp_path / "careful.yaml").write_text("cache:\n  codec: int4\n  sink_codec: int8\n")
    monkeypatch.setattr(card_files, "config_folder", lambda kind: tmp_path)
    assert presets() == {"careful": StreamCodecs("int4", sink="int8")}


def test_shipped_presets_grow_from_small_to_quality():
    shape = CARDS["self-forcing"].shape.with_frames(1560, 3)
    bits = {
        name: shape.with_pages_for(codecs).bits_per_value(4680, codecs.steady) for name, codecs in presets().items()
    }
    assert list(bits) == ["quality", "balanced", "small"]
    assert 0.7 < bits["small"] < bits["balanced"] < bits["quality"] < 4


def test_a_wheel_carries_its_own_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(card_files, "PACKAGE", tmp_path)
    assert card_files.config_folder("models") == tmp_path.parent / "configs" / "models"
    (tmp_path / "configs" / "models").mkdir(parents=True)
    assert card_files.config_folder("models") == tmp_path / "configs" / "models"


@pytest.mark.parametrize("written", ["832", "832x", "axb", "832x480x1", "0x480", "-832x480", "832x99999", "8²x480"])
def test_resolutions_that_are_none(written):
    with pytest.raises(ConfigError, match="resolution is"):
        Resolution.parse(written)


def test_a_resolution_that_the_strides_do_not_divide():
    with pytest.raises(ConfigError, match=r"covers 16x16 pixels.*the nearest is 848x480"):
        CARDS["self-forcing"].tokens_per_frame(Resolution(850, 480))
