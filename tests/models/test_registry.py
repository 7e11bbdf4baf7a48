"""Models by name, without their weights."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from pathlib import Path

import pytest

from pagedvid.cache.window import Window
from pagedvid.capacity.card_files import all_cards
from pagedvid.errors import ConfigError
from pagedvid.models.demo.weights import SHIPPED_WEIGHTS
from pagedvid.models.magi1.spec import PUBLISHED
from pagedvid.models.registry import model_tables
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.published import write_self_forcing
from tests.models.wan.base.tiny import tiny_transformer


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown model 'magi-2'; known are demo, walk, magi-1-4\.5b, .*magi-1-24b"):
        spec_of("magi-2")


def test_every_published_variant_has_a_name():
    for name, config in PUBLISHED.items():
        geometry = spec_of(name).geometry
        assert (geometry.num_layers, geometry.head_dim) == (config.network.num_layers, 128)


def test_who_writes_latents():
    assert not spec_of("demo").writes_latents
    for name in ("magi-1-4.5b", "hy-worldplay-8b", "self-forcing", "skyreels-v2-1.3b"):
        assert spec_of(name).writes_latents
    for name in ("self-forcing", "skyreels-v2-1.3b"):
        assert not spec_of(name, vae=Path("x")).writes_latents


def test_who_goes_on_from_given_frames():
    for name in ("demo", "walk"):
        assert spec_of(name).takes_frames and load_model(name).prefix_format(Window(1, 2)) is not None
    for name in ("magi-1-4.5b", "hy-worldplay-8b", "self-forcing", "skyreels-v2-1.3b"):
        assert not spec_of(name).takes_frames
    for name in ("self-forcing", "skyreels-v2-1.3b"):
        assert spec_of(name, vae=Path("x")).takes_frames


@pytest.mark.parametrize("name", ["demo", "walk"])
def test_a_built_in_model_understands_its_example(name: str, recwarn):
    load_model(name).prepare(spec_of(name).example_prompt, {}, 8)
    assert not recwarn.list, "a warning is for a word that the model does not know"


def test_the_demo_takes_no_other_parts():
    for part in ("text_encoder", "vae"):
        with pytest.raises(ConfigError, match="needs neither a text encoder nor a VAE"):
            load_model("demo", **{part: Path("x")})


def test_who_is_sampled_as_settings_say():
    for name in ("guidance_scale", "shift", "addnoise_condition"):
        for model in ("demo", "magi-1-4.5b", "self-forcing"):
            with pytest.raises(ConfigError, match=rf"{model} is sampled as published; remove model\.{name}"):
                spec_of(model, **{name: 5})
    assert spec_of("skyreels-v2-1.3b").geometry.branches == ("cond", "uncond")
    assert spec_of("skyreels-v2-1.3b", guidance_scale=1).geometry.branches == ("cond",)
    with pytest.raises(ConfigError, match="addnoise_condition is 4; with shift 8 it must be 0 or at least 8"):
        spec_of("skyreels-v2-1.3b", addnoise_condition=4)
    spec_of("skyreels-v2-1.3b", addnoise_condition=4, shift=3)


@pytest.mark.parametrize("name", ["demo", "magi-1-4.5b", "self-forcing", "hy-worldplay-5b"])
def test_who_has_an_order_of_work_of_its_own(name: str):
    with pytest.raises(ConfigError, match=rf"{name} begins chunks in an order of its own; remove model\.ar_step"):
        spec_of(name, ar_step=5)
    schedule = spec_of("skyreels-v2-1.3b", ar_step=10).schedule(60, None, Window(1, 4))
    assert max(len(round_.ranges) for round_ in schedule.rounds()) == 2 * 4


@pytest.mark.parametrize("name", ["self-forcing", "krea-14b", "longlive-2-5b", "skyreels-v2-1.3b", "skyreels-v2-14b"])
def test_models_that_run_are_what_their_cards_say(name: str):
    """`pagedvid capacity` counts with the cards of configs/models."""
    card, _ = all_cards(None)[name]
    height, width = (int(side) for side in str(card.resolution).split("x")[::-1])
    spec = spec_of(name, height=height, width=width)
    geometry = spec.geometry
    assert (geometry.num_layers, geometry.num_query_heads, geometry.num_kv_heads, geometry.head_dim) == (
        card.num_layers, card.num_query_heads, card.num_kv_heads, card.head_dim,
    )  # fmt: skip
    assert geometry.tokens_per_frame == card.tokens_per_frame(card.resolution)
    assert (geometry.frames_per_chunk, geometry.branches) == (card.frames_per_chunk, tuple(card.branches))
    schedule = spec.schedule(100, None, Window(9, 9))
    assert schedule.window.max_chunks == card.window.sink_chunks + card.window.recent_chunks


@pytest.mark.parametrize("name", ["demo", "magi-1-4.5b"])
def test_the_order_of_work_is_known_without_weights(name: str):
    spec = spec_of(name)
    schedule = spec.schedule(3 * spec.geometry.frames_per_chunk, 4, Window(0, 1))
    finished = [chunk for round_ in schedule.rounds() for chunk in round_.finished]
    assert finished == [0, 1, 2] and schedule.num_commits == 2
    assert (schedule.commits is None) == (name == "demo")


# ---------------------------------------------------------------------- whatever is at a path

FAMILIES = ("demo", "magi-1-4.5b", "hy-worldplay-8b", "hy-worldplay-5b", "self-forcing", "skyreels-v2-1.3b")


def text_file(folder: Path) -> Path:
    (folder / "p.txt").write_text("a red circle")
    return folder / "p.txt"


def pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def dangling(folder: Path, name: str) -> Path:
    (folder / name).symlink_to("gone")
    return folder / name


def folder_of_pipes(folder: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        pipe(folder, name)
    return folder


def folder_of_text(folder: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("a red circle")
    return folder


def folders_for_files(folder: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (folder / name).mkdir()
    return folder


PLACES = {
    "text file": text_file,
    "below a file": lambda folder: text_file(folder) / "w",
    "absent": lambda folder: folder / "absent",
    "empty folder": lambda folder: folder,
    "pipe": lambda folder: pipe(folder, "w.safetensors"),
    "device": lambda folder: Path("/dev/zero"),
    "dangling link": lambda folder: dangling(folder, "w.pt"),
    "link to itself": lambda folder: dangling(folder, "gone"),
    "NUL": lambda folder: folder / "a\0b.safetensors",
    "10,000 letters": lambda folder: folder / ("a" * 10_000),
    "folder of pipes": folder_of_pipes,
    "folder of text": folder_of_text,
    "folders for files": folders_for_files,
}


@pytest.mark.timeout(100)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_is_in_the_place_of_weights_is_refused_by_name(name: str, place: str, tmp_path: Path):
    path = PLACES[place](tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_model(name, path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    for look in (lambda: spec_of(name, path).schedule(8, None, Window(1, 2)), lambda: model_tables(name, path)):
        with contextlib.suppress(ConfigError):  # some look at nothing but the name; none may fail otherwise, or wait
            look()


@pytest.mark.timeout(100)
@pytest.mark.parametrize("part", ["text_encoder", "vae"])
@pytest.mark.parametrize("place", PLACES)
def test_whatever_is_in_the_place_of_other_parts_is_refused_by_name(place: str, part: str, tmp_path: Path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "place").mkdir()
    weights = write_self_forcing(tmp_path / "weights", generator=tiny_transformer("WanTransformer3DModel"))
    path = PLACES[place](tmp_path / "place")
    with pytest.raises(ConfigError) as caught:
        load_model("self-forcing", weights, height=48, width=80, prompts=("a",), **{part: path})
    assert len(str(caught.value)) < 900


ODD = [None, True, "x", "3", -1, 0, 0.5, 2**70, [], [1], [1, 2, 3], {}, float("nan"), float("inf"), [None], [[1]]]


@pytest.mark.parametrize("name", ["self-forcing", "skyreels-v2-1.3b"])
def test_odd_values_in_a_configuration_file_of_diffusers_are_refused_or_run(name: str, tmp_path: Path):
    wan = name == "self-forcing"
    transformer = tiny_transformer("WanTransformer3DModel" if wan else "SkyReelsV2Transformer3DModel")
    file = tmp_path / "config.json"
    if wan:
        write_self_forcing(tmp_path, generator=transformer)
    else:
        transformer.save_pretrained(tmp_path)
    content = json.loads(file.read_text())
    for key, value in itertools.product([*content, "eps"], ODD):
        file.write_text(json.dumps({**content, key: value}))
        with contextlib.suppress(ConfigError):
            spec = spec_of(name, tmp_path, height=48, width=80)
            assert spec.geometry.num_kv_heads > 0
            spec.schedule(12, None, Window(1, 2))


def test_odd_values_in_the_demo_s_configuration_file_are_refused_or_run(tmp_path: Path):
    content = json.loads((SHIPPED_WEIGHTS / "config.json").read_text())
    for key, value in itertools.product([*content["architecture"], *content], ODD):
        changed = json.loads(json.dumps(content))
        (changed["architecture"] if key in changed["architecture"] else changed)[key] = value
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with contextlib.suppress(ConfigError):
            assert spec_of("demo", tmp_path).geometry.head_dim % 2 == 0


@pytest.mark.parametrize("name", ("magi-1-4.5b-distill", "hy-worldplay-8b", "hy-worldplay-5b"))
def test_odd_values_in_a_configuration_file_are_refused_or_run(name: str, tmp_path: Path, monkeypatch):
    """Every key that is read, with values of every kind: nothing but ConfigError comes, and at once."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    import make_tiny_checkpoint

    make_tiny_checkpoint.write(make_tiny_checkpoint.MAKERS[name](name, 0), tmp_path, "safetensors")
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    sections = [key for key in content if key.endswith("_config")]
    keys = [(section, key) for section in sections for key in content[section]]
    keys += [("", key) for key in ("latent_size", "rope_theta", "rope_dim_list", "attention_head_dim", *sections)]
    for (section, key), value in itertools.product(keys, ODD):
        changed = json.loads(json.dumps(content))
        (changed[section] if section else changed)[key] = value
        file.write_text(json.dumps(changed))
        with contextlib.suppress(ConfigError):
            spec_of(name, tmp_path).schedule(12, None, Window(1, 2))
