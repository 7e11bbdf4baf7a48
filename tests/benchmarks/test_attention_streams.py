"""The benchmarks for GPUs, tried out on the CPU: both sides compute the same thing, and tiny runs write their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pagedvid.rotary.axis_tables import follows_grid
from pagedvid.rotary.grid import RopeGrid

CPU = torch.device("cpu")


def test_without_history_paged_equals_dense() -> None:
    """One stream and the same seed: both draw the same current chunk."""
    from attention_streams import dense_call, paged_call
    from layer_shapes import SHAPES, LayerInputs

    dense = dense_call("torch-cpu", LayerInputs(SHAPES["tiny"], CPU, 0), 0, 1, CPU)().float()
    paged = paged_call("torch", "int2", LayerInputs(SHAPES["tiny"], CPU, 0), 0, 1, CPU)().float()
    assert paged.shape == dense.shape == (70, 4, 32)
    assert (paged - dense).norm() < 0.02 * dense.norm()


def test_the_rotary_embedding_has_the_grid_of_the_shape() -> None:
    from layer_shapes import SHAPES

    assert {name: shape.chunk_tokens for name, shape in SHAPES.items()} == {
        "wan-1.3b": 3 * 1560,
        "wan-14b": 3 * 1560,
        "magi-1-4.5b": 6 * 2025,
        "hy-worldplay-8b": 4 * 1560,
        "tiny": 70,
    }
    shape = SHAPES["tiny"]
    assert shape.rope().grid == RopeGrid.split(5, 7, (6, 5, 5))
    assert follows_grid(shape.rope(), [(0, 70), (70, 70)])


def test_attention_writes_a_row_per_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from attention_streams import main

    settings = ["--device", "cpu", "--shapes", "tiny", "--backends", "torch", "--rounds", "2"]
    main([*settings, "--chunks", "0", "2", "--streams", "2", "--out", str(tmp_path / "x.json")])
    rows = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    assert [(row["chunks"], row["case"]) for row in rows] == [
        (chunks, case) for chunks in (0, 2) for case in ("dense torch-cpu", "torch int2", "torch klt1.5/klt3")
    ]
    assert rows[0]["ratio_to_fastest_dense"] == 1 and len(rows[1]["seconds"]) == 2
    assert rows[3]["tflops"] == pytest.approx(4 * 2 * 70 * 210 * 4 * 32 / rows[3]["median_seconds"] / 1e12)


def test_attention_on_cuda_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import attention
    import attention_streams

    seen: list[list[str]] = []
    monkeypatch.setattr(attention_streams, "main", seen.append)
    attention.main(["--device", "cuda", "--streams", "1"])
    assert seen == [["--device", "cuda", "--streams", "1"]]


def test_commit_writes_a_row_per_codec_and_correction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from commit import main

    settings = ["--device", "cpu", "--shapes", "tiny", "--codecs", "int2", "bf16", "--rounds", "2"]
    main([*settings, "--corrections", "measured", "--out", str(tmp_path / "x.json")])
    rows = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    assert [(row["codec"], row["store"]) for row in rows] == [("int2", "torch"), ("bf16", "torch")]
    assert all(len(row["seconds"]) == 2 and row["over_denoising"] > 0 for row in rows)
