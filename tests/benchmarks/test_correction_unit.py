"""The comparison of corrections by chunk and by page: its scenes change where they say, and a small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from correction_unit import CASES, StoredVideo, exact_attention, main
from lib.changing_scenes import CHUNK_TOKENS, FRAME_TOKENS, draw_scene


def test_scenes_change_where_they_say() -> None:
    """Channels of the keys, before and after the middle of the second chunk, and in its middle frame."""
    half = CHUNK_TOKENS // 2
    looks = {}
    for name in ("moving", "cut"):
        k = draw_scene(name, 0).k_CHTD
        looks[name] = [part.std(1) for part in (k[0], k[1][:, :half], k[1][:, half:])]
    for name, (first, before, after) in looks.items():
        assert float((before / first).log().abs().mean()) < 0.15
        assert (float((after / first).log().abs().mean()) > 0.3) == (name == "cut")
    frames = draw_scene("bright frame", 0).k_CHTD[1].unflatten(1, (-1, FRAME_TOKENS)).square().mean((0, 2, 3))
    assert float(frames[1]) == pytest.approx(4 * float(frames[[0, 2]].mean()), rel=0.2)


def test_exact_keys_have_no_error() -> None:
    sample = draw_scene("cut", 0)
    video = StoredVideo(sample, "fp32", "off", "off", None)
    out, mass = exact_attention(sample, 0)
    torch.testing.assert_close(video.attend(0).double(), out, rtol=0, atol=1e-4)
    torch.testing.assert_close(video.attend(0, 1)[..., 0].double(), mass, rtol=0, atol=1e-4)


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "unit.json"
    given = ["--scenes", "cut", "--codecs", "int2", "--corrections", "measured", "--seeds", "2", "--rounds", "1"]
    main([*given, "--out", str(out)])
    row = json.loads(out.read_text())["results"]["int2, measured"]["cut"]
    assert all(len(row[name][case]) == 2 for name in ("error", "dP", "odds", "runs") for case in CASES)
    pairs = zip(row["error"]["page"], row["error"]["off"], strict=True)
    assert all(page < off for page, off in pairs)
    assert row["runs"]["chunk"] == [1, 1] and row["runs"]["each"] == [10, 10] and 1 < row["runs"]["page"][0] < 10
    assert "page - chunk" in capsys.readouterr().out
