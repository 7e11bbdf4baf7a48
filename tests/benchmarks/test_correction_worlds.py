"""The table of corrections by content: its worlds are as described, and it sees what corrections do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from correction_worlds import SHOWN, main, read, scheme_of, world_videos
from lib.attention_error import measure, store


def test_worlds_persist_and_are_alike_as_asked() -> None:
    def correlation(x, y) -> float:
        return float((x * y).mean() / (x.square().mean() * y.square().mean()).sqrt())

    for persistence in (0.0, 0.9, 1.0):
        (sample,) = world_videos("full rank", persistence, 1, 3)
        frames = sample.k_CHTD.unflatten(2, (3, 195))
        assert correlation(frames[:, :, 1:], frames[:, :, :-1]) == pytest.approx(persistence, abs=0.05)
        assert correlation(sample.k_CHTD[1:], sample.k_CHTD[:-1]) == pytest.approx(persistence**3, abs=0.05)
    (sample,) = world_videos("alike neighbours", 0.0, 1, 3)
    frame = sample.k_CHTD.unflatten(2, (3, 195))[:, :, 0]
    assert correlation(frame, frame.roll(1, 2)) > 0.9 and abs(correlation(frame, frame.roll(40, 2))) < 0.1


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "worlds.json"
    main(["--kinds", "full rank", "--persistence", "0", "--codecs", "int2", "--videos", "2", "--out", str(out)])
    (row,) = json.loads(out.read_text())["results"]["int2"]
    shift = {name: result["dP"] for name, result in row["results"].items()}
    assert shift["off"] > 0.02 and abs(shift["measured"]) < 0.3 * shift["off"] < shift["log Z"]
    by_chunk = row["results"]["off"]["dP of chunks"]
    assert len(by_chunk) == 4 and sum(by_chunk) == pytest.approx(shift["off"], abs=1e-3)
    assert row["results"]["formula"]["alpha"] == pytest.approx(1.0)
    assert "full rank" in capsys.readouterr().out


def test_shifts_and_errors_are_those_of_attention_error() -> None:
    """lib/attention_error.py finds the same in float32."""
    (sample,) = world_videos("low rank", 0.5, 1, 0)
    readout = store(scheme_of("int2", sample), sample)
    found, expected = read(readout, 0), measure(readout, 0)
    assert list(found) == list(SHOWN)
    for name, values in found.items():
        torch.testing.assert_close(values["dP"].sum(0).float(), expected[name]["dP"], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(values["error"].float(), expected[name]["error"], atol=1e-5, rtol=1e-3)
