"""What settings come to for a model with a profile, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pagedvid.budgets.profile import profile_of, with_profile
from pagedvid.cache.stream_sizes import window_bits_per_value
from pagedvid.codecs.tables_file import Calibration, load_calibration, save_calibration
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.errors import ConfigError
from pagedvid.models.build import RunSpec, resolve
from pagedvid.models.demo.weights import SHIPPED_WEIGHTS
from pagedvid.models.registry import TABLES_FILE_NAME
from pagedvid.models.storage import DEFAULT_BITS

SHIPPED = SHIPPED_WEIGHTS / TABLES_FILE_NAME


def run_of(tables: Path | None = None, **cache: object) -> RunSpec:
    written = None if tables is None else str(tables)
    return resolve(Config(cache=CacheConfig(tables=written, **cache)))  # type: ignore[arg-type]


def saved(folder: Path, calibration: Calibration) -> Path:
    path = folder / "tables.safetensors"
    save_calibration(calibration, path)
    return path


@pytest.fixture
def shipped() -> Calibration:
    return load_calibration(SHIPPED)


def test_the_default_spends_bits_by_the_shipped_profile():
    run = run_of()
    cache = run.config.cache
    assert (cache.codec, cache.bits, cache.correction, run.tables) == ("klt", DEFAULT_BITS["klt"], "off", SHIPPED)
    assert run.spending is not None and 0.97 * cache.bits < run.spending.bits <= cache.bits
    shape = run.cache.shape
    assert (cache.look_back, shape.page_rows) == ("per_head", 12)
    held = window_bits_per_value(shape, run.window, run.cache.codecs, run.model.geometry.chunk_tokens)
    assert held == pytest.approx(run.spending.bits)
    again = resolve(run.config)
    assert (again.config, again.cache, again.spending) == (run.config, run.cache, run.spending)


def test_every_head_is_stored_as_it_was_decided():
    run = run_of(codec="klt", bits=0.75)
    assert run.spending is not None
    for layer, row in enumerate(run.spending.heads):
        for head, stored in enumerate(row):
            pair = run.cache.codecs.steady.at(layer, head)
            assert pair is not None and (pair.keys.name, pair.values.name) == (stored.keys, stored.values)


def test_sinks_and_the_newest_chunk_may_have_codecs_of_their_own():
    run = run_of(codec="klt", bits=1, sink_codec="int8", newest_codec="bf16")
    assert str(run.cache.codecs.sink) == "int8" and str(run.cache.codecs.newest) == "bf16"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"codec": "int2", "bits": 1}, "cache.bits is 1, but codec int2 has bits of its own"),
        (
            {"codec": "klt2", "look_back": "per_head"},
            "cache.look_back is per_head, but codec klt2 stores",
        ),
        ({"codec": "int", "bits": 2}, "its profile is of 'klt'.*pagedvid profile --ladder int"),
        ({"codec": "klt", "layer_codecs": {0: "int8"}}, "cache.layer_codecs is set, but codec klt decides"),
        ({"codec": "klt", "page_rows": 16}, r"cache.bits 1.25: the profile was measured with page_rows 12 \(here 16\)"),
        ({"codec": "klt", "look_back": "per_head", "recent_chunks": 2}, r"recent_chunks 4 \(here 2\)"),
    ],
)
def test_settings_that_contradict_each_other(settings, said):
    with pytest.raises(ConfigError, match=said):
        run_of(**settings)


def test_tables_of_format_1_mean_what_they_did(tmp_path, shipped):
    """Without a profile: all heads alike, and no bits."""
    plain = {name: x for name, x in shipped.tensors.items() if not name.endswith(".error")}
    tables = saved(tmp_path, replace(shipped, tensors=plain, facts={}))
    run = run_of(tables)
    assert (run.config.cache.codec, run.config.cache.bits, run.spending) == ("klt1.5/klt3", None, None)
    with pytest.raises(ConfigError, match=r"cache.codec is .klt.*there is no profile.*`pagedvid calibrate`"):
        run_of(tables, codec="klt", bits=1)


def test_a_ladder_of_integers_is_corrected(tmp_path, shipped):
    profile = profile_of(shipped)
    assert profile is not None
    rungs, steps = ("mean", "int2", "int4", "int8"), [0, 2, 4, 6]
    as_int = replace(
        profile, ladder="int", rungs=rungs, page_rows=36, keys_PLHR=profile.keys_PLHR[..., steps],
        values_PLHR=profile.values_PLHR[..., steps],
    )  # fmt: skip
    means = {name: x for name, x in shipped.tensors.items() if name.endswith(".mean")}
    calibration = replace(shipped, tensors=means, facts={"tables": "means"})
    run = run_of(saved(tmp_path, with_profile(calibration, as_int)))
    assert run.config.cache.bits == DEFAULT_BITS["int"]
    assert (run.config.cache.codec, run.config.cache.correction, run.cache.shape.page_rows) == ("int", "measured", 36)
    assert {codec.name for codec in run.cache.codecs.steady.used(6, 3)} <= set(rungs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "other"}, r"is of model other \(here demo\)"),
        ({"model": "a", "tokens_per_frame": 8}, r"is of model a \(here demo\), tokens of a frame 8 \(here 16\)"),
    ],
)
def test_a_profile_of_another_model_is_refused(tmp_path, shipped, changes, said):
    with pytest.raises(ConfigError, match=said):
        run_of(saved(tmp_path, replace(shipped, **changes)))


def test_a_profile_of_other_chunks_is_refused(tmp_path, shipped):
    profile = profile_of(shipped)
    assert profile is not None
    other = with_profile(shipped, replace(profile, chunk_tokens=64))
    with pytest.raises(ConfigError, match=r"tokens of a chunk 64 \(here 128\)"):
        run_of(saved(tmp_path, other))
