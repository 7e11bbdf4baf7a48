"""The attention benchmark for GPUs, on the CPU: both sides compute the same thing, and a tiny run writes its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import attention
import attention_streams
from attention_streams import main, paged_call
from lib.layers import SHAPES, LayerInputs, dense_call

CPU = torch.device("cpu")


def test_without_history_paged_equals_dense() -> None:
    """One stream and the same seed: both draw the same current chunk."""
    dense = dense_call("torch-cpu", LayerInputs(SHAPES["tiny"], CPU, 0), 0, 1, CPU)().float()[0]
    paged = paged_call("torch", "int2", LayerInputs(SHAPES["tiny"], CPU, 0), 0, 1, CPU)().float()
    assert paged.shape == dense.shape == (70, 4, 32)
    assert (paged - dense).norm() < 0.02 * dense.norm()


def test_attention_writes_a_row_per_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--device", "cpu", "--shapes", "tiny", "--backends", "torch", "--rounds", "2"]
    main([*settings, "--chunks", "0", "2", "--streams", "2", "--out", str(tmp_path / "x.json")])
    rows = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    assert [(row["chunks"], row["case"]) for row in rows] == [
        (chunks, case) for chunks in (0, 2) for case in ("dense torch-cpu", "torch int2", "torch klt1.5/klt3")
    ]
    assert rows[0]["ratio_to_fastest_dense"] == 1 and len(rows[1]["seconds"]) == 2
    assert rows[3]["tflops"] == pytest.approx(4 * 2 * 70 * 210 * 4 * 32 / rows[3]["median_seconds"] / 1e12)


def test_every_table_is_in_the_file_as_soon_as_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second history never ends well."""
    measured = attention_streams.measure

    def measure(arguments, name: str, num_chunks: int, num_streams: int) -> list[dict]:
        if num_chunks == 2:
            raise KeyboardInterrupt
        return measured(arguments, name, num_chunks, num_streams)

    monkeypatch.setattr(attention_streams, "measure", measure)
    settings = ["--device", "cpu", "--shapes", "tiny", "--backends", "torch", "--codecs", "int2", "--rounds", "1"]
    with pytest.raises(KeyboardInterrupt):
        main([*settings, "--chunks", "0", "2", "--streams", "1", "--out", str(tmp_path / "x.json")])
    rows = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    assert [row["case"] for row in rows] == ["dense torch-cpu", "torch int2"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_attention_on_cuda_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(attention_streams, "main", seen.append)
    attention.main(["--device", "cuda", "--streams", "1"])
    assert seen == [["--device", "cuda", "--streams", "1"]]
