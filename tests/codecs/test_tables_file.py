"""Calibrations in files: what is written is read, and errors say what is wrong with a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.codecs.base import make_codec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.tables_file import VERSION, Calibration, load_calibration, save_calibration
from pagedvid.errors import ConfigError
from tests.codecs.klt.scenes import FRAME_TOKENS, HEAD_DIM, NUM_FRAMES, codec, decode, draw, page, tables


def calibration() -> Calibration:
    return Calibration.of("toy", [tables("keys")] * 2, [tables("values")] * 2, "four seeds")


def metadata(**changes: str) -> dict[str, str]:
    facts = {"format": VERSION, "model": "toy", "num_layers": "2", "num_kv_heads": "2", "head_dim": str(HEAD_DIM)}
    facts |= {"tokens_per_frame": str(FRAME_TOKENS), "frames_per_block": str(NUM_FRAMES), "calibrated_on": "x"}
    return facts | changes


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "tables.safetensors"
    save_calibration(calibration(), path)
    loaded = load_calibration(path)
    facts = ("model", "num_layers", "num_kv_heads", "head_dim", "tokens_per_frame", "frames_per_block", "calibrated_on")
    assert [getattr(loaded, name) for name in facts] == ["toy", 2, 2, HEAD_DIM, FRAME_TOKENS, NUM_FRAMES, "four seeds"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert loaded.num_bytes == calibration().num_bytes
    assert path.stat().st_size < loaded.num_bytes + 4096
    for kind in ("keys", "values"):
        before, after = calibration().tables(kind, 1), loaded.tables(kind, 1)
        for name in ("spectrum_N", "mean_hD", "analysis_hDD", "deviation_hN", "order_hN"):
            assert torch.equal(getattr(before, name), getattr(after, name))


def test_half_precision_costs_next_to_nothing():
    x = draw(9).v_CHTD[0]
    exact, rounded = (
        codec("klt2", "values"),
        make_codec(read_codec("klt2"), page("klt2"), calibration().tables("values", 0)),
    )
    errors = [float((decode(tried, tried.encode(x), 40) - x).norm()) for tried in (exact, rounded)]
    assert errors[1] < 1.02 * errors[0]


def test_one_file_serves_every_rate_and_any_heads(tmp_path):
    path = tmp_path / "tables.safetensors"
    save_calibration(calibration(), path)
    both = load_calibration(path).tables("keys", 0)
    x = draw(9).k_CHTD[0]
    for name in ("klt1", "klt2.5"):
        whole = make_codec(read_codec(name), page(name), both)
        alone = whole.of_heads((1,))
        assert torch.equal(whole.encode(x)[1:], alone.encode(x[1:]))


@pytest.mark.parametrize(("kind", "layer"), [("keys", 2), ("keys", -1), ("queries", 0)])
def test_tables_that_do_not_exist_are_refused(kind, layer):
    with pytest.raises(ConfigError, match="of toy are for keys and values of layers 0 to 1"):
        calibration().tables(kind, layer)


def test_a_missing_file_is_reported_with_how_to_make_it(tmp_path):
    with pytest.raises(ConfigError, match="is missing; `pagedvid calibrate --out"):
        load_calibration(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0, 7, 1000])
def test_a_torn_file_is_refused(tmp_path, kept):
    path = tmp_path / "tables.safetensors"
    save_calibration(calibration(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=r"cannot be read|is empty"):
        load_calibration(path)


@pytest.mark.parametrize("format_", ["pagedvid klt tables 99", ""])
def test_another_version_is_refused(tmp_path, format_):
    path = tmp_path / "tables.safetensors"
    save_file(dict(calibration().tensors), path, metadata(format=format_))
    with pytest.raises(ConfigError, match="this version reads"):
        load_calibration(path)


@pytest.mark.parametrize("facts", [{"num_layers": "many"}, {"num_layers": ""}])
def test_useless_metadata_are_refused(tmp_path, facts):
    path = tmp_path / "tables.safetensors"
    save_file(dict(calibration().tensors), path, metadata(**facts))
    with pytest.raises(ConfigError, match="does not describe its model"):
        load_calibration(path)


@pytest.mark.parametrize(
    "facts", [{"num_layers": "3"}, {"num_kv_heads": "1"}, {"head_dim": "32"}, {"frames_per_block": "2"}]
)
def test_tables_of_other_shapes_than_stated_are_refused(tmp_path, facts):
    path = tmp_path / "tables.safetensors"
    save_file(dict(calibration().tensors), path, metadata(**facts))
    with pytest.raises(ConfigError, match="instead of"):
        load_calibration(path)


DAMAGE = {
    "gone": ("values.mean", None, "missing"),
    "not a number": ("keys.analysis", lambda x: x.index_fill(0, torch.tensor(0), torch.nan), "NaN"),
    "another type": ("keys.mean", lambda x: x.double(), "float64"),
    "not a permutation": ("values.order", lambda x: torch.zeros_like(x), "leaves out coefficients"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_tables_are_refused(tmp_path, kind):
    name, change, said = DAMAGE[kind]
    tensors = dict(calibration().tensors)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    path = tmp_path / "tables.safetensors"
    save_file(tensors, path, metadata())
    with pytest.raises(ConfigError, match=said):
        load_calibration(path)


def test_a_place_that_cannot_be_written_is_reported_and_nothing_is_left(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        save_calibration(calibration(), tmp_path / "no folder" / "tables.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "tables.safetensors"
    save_calibration(calibration(), path)
    broken = replace(calibration(), tensors={"x": torch.zeros(2, 2).to_sparse()})
    with pytest.raises(ValueError):
        save_calibration(broken, path)
    assert load_calibration(path).model == "toy"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
