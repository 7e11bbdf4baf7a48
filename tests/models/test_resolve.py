"""What `auto` means, where tables are found, and the codecs of all roles."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.tables_file import save_calibration
from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.errors import ConfigError
from pagedvid.models.build import build_engine, resolve
from pagedvid.models.demo.weights import SHIPPED_WEIGHTS
from pagedvid.models.registry import TABLES_FILE_NAME
from pagedvid.models.storage import CALIBRATED_CODEC, DEFAULT_BITS, PLAIN_CODEC
from tests.budgets.profiles import calibration


def config_of(weights: Path | None = None, name: str = "demo", **cache: object) -> Config:
    model = ModelConfig(name=name, weights=None if weights is None else str(weights))
    return Config(model=model, cache=CacheConfig(**cache))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights without tables."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    shutil.copy(SHIPPED_WEIGHTS / "config.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("has_tables", "codec"), [(False, PLAIN_CODEC), (True, CALIBRATED_CODEC)])
@pytest.mark.parametrize("names_the_file", [False, True])
def test_auto_depends_on_tables_beside_the_weights(folder, has_tables, codec, names_the_file, caplog):
    tables = folder / TABLES_FILE_NAME
    if has_tables:
        save_calibration(calibration(), tables)
    weights = folder / "model.safetensors" if names_the_file else folder
    caplog.set_level(logging.INFO)
    run = resolve(config_of(weights, "magi-1-4.5b" if names_the_file else "demo"))  # the demo takes folders only
    assert run.config.cache.codec == codec
    assert run.tables == (tables if has_tables else None)
    assert f"codec: {codec} (the model has {'' if has_tables else 'no '}klt tables)" in caplog.text


def test_tables_may_lie_elsewhere(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_calibration(calibration(), elsewhere)
    run = resolve(config_of(folder, tables=str(elsewhere)))
    assert (run.config.cache.codec, run.tables) == (CALIBRATED_CODEC, elsewhere)


def test_the_demo_comes_with_tables():
    run = resolve(Config())
    assert (run.config.cache.codec, run.config.cache.bits) == ("klt", DEFAULT_BITS["klt"]) and run.tables is not None
    for choice in ({"layer_codecs": {0: "int8"}}, {"page_rows": 36}):  # which leave no choice by head
        assert resolve(config_of(**choice)).config.cache.codec == CALIBRATED_CODEC


def test_another_model_without_weights_has_none():
    run = resolve(Config(model=ModelConfig(name="magi-1-4.5b")))
    assert (run.config.cache.codec, run.tables) == ("int2", None)


@pytest.mark.parametrize(
    ("codec", "correction"),
    [("int2", "measured"), ("int4/klt2", "measured"), ("klt1.5", "off"), ("klt2/int4", "off"), ("bf16", "off")],
)
def test_a_codec_that_was_asked_for_stays_and_decides_the_correction(folder, codec, correction, caplog):
    caplog.set_level(logging.INFO)
    run = resolve(config_of(folder, codec=codec))
    assert (run.config.cache.codec, run.config.cache.correction) == (codec, correction)
    assert run.cache.correction == correction
    assert caplog.text == ""


def test_a_correction_that_was_asked_for_stays(folder):
    config = config_of(folder, codec="klt2", correction="variance", sink_chunks=1, recent_chunks=4)
    assert resolve(config).config == config


@pytest.mark.parametrize("codec", ["auto", "int2"])
def test_tables_that_do_not_exist_are_refused(folder, codec):
    for missing in (folder / "none", folder):
        with pytest.raises(ConfigError, match=r"cache.tables: .* is not a file; `pagedvid calibrate` makes one"):
            resolve(config_of(folder, codec=codec, tables=str(missing)))


def test_codecs_of_all_roles():
    layer_codecs = {"0-1": "int8/int4", 3: "klt2"}
    config = config_of(codec="int4/int2", sink_codec="int8", newest_codec="bf16", layer_codecs=layer_codecs)
    codecs = resolve(config).cache.codecs
    layers = ((0, 1, "int8/int4"), (3, 3, "klt2"))
    assert codecs == StreamCodecs("int4/int2", sink="int8", newest="bf16", layers=layers)
    assert codecs.final(1, Window(1, 2)) == ChunkCodecs.read("int4/int2", layers)


def test_the_cache_is_made_for_codecs_frames_and_rows():
    run = resolve(config_of(codec="klt2", sink_codec="int8", correction="variance"))
    spec, geometry = run.cache, run.model.geometry
    assert (spec.shape.page_rows, spec.correction) == (32, "variance")
    assert (spec.tokens_per_frame, spec.frames_per_block) == (geometry.tokens_per_frame, geometry.frames_per_chunk)
    assert resolve(config_of(codec="klt2", page_rows=40)).cache.shape.page_rows == 40
    assert resolve(config_of(codec="int2")).cache.shape.page_rows == 36


def test_klt_needs_tables_and_finds_those_of_the_demo():
    run = resolve(config_of(codec="klt2"))
    assert run.tables == SHIPPED_WEIGHTS / TABLES_FILE_NAME
    build_engine(run)
    with pytest.raises(ConfigError, match=r"klt2 needs tables of the model; make them with `pagedvid calibrate`"):
        build_engine(replace(run, tables=None))


def test_tables_that_no_codec_needs_are_not_read():
    assert resolve(config_of(codec="int2")).tables is None
