"""The quality benchmark on an untrained model: what is generated, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from demo_quality import case_of, first_chunks, main, parse
from lib.caches import Case
from lib.lab import Lab
from lib.quality import draw_tasks
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.weights import load_demo


class LaterNoise(DemoModel):
    """Starts with the noise of the second chunk."""

    def initial_noise(self, seed: int, chunk_index: int) -> Tensor:
        return super().initial_noise(seed, chunk_index + 1)


def test_emptied_cache_sees_nothing_of_the_first_chunk(weights: Path) -> None:
    requests = [task.request for task in draw_tasks(2, 0)]
    model = load_demo(weights)
    whole = first_chunks(Lab(model, requests, 32, 2, weights), emptied=False)
    emptied = first_chunks(Lab(model, requests, 32, 2, weights), emptied=True)
    assert whole.shape == emptied.shape == (2, 32, 32, 32, 3)
    np.testing.assert_array_equal(whole[:, :8], emptied[:, :8])
    difference = np.abs(whole[:, 8:].astype(int) - emptied[:, 8:])
    assert all(difference[:, start : start + 8].mean() > 0.1 for start in (0, 8, 16))
    later = LaterNoise(model.network, model.rope, model.geometry)
    fresh = first_chunks(Lab(later, requests, 32, 2, weights), emptied=False)
    np.testing.assert_array_equal(emptied[:, 8:], fresh[:, :24])


def test_uncorrected_cache_goes_by_its_own_name() -> None:
    assert case_of("int2") == Case("int2", "own")
    assert case_of("int2-off") == Case("int2", "off")
    assert case_of("default") == Case("default", "own")


def test_runs_and_writes(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--prompts", "4", "--frames", "48", "--steps", "1", "--codecs", "bf16", "int2", "int2-off"]
    main([*tiny, "--weights", str(weights), "--out", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert len(results["prompts"]) == 4
    assert list(results["attributes"]) == ["0-24", "24-48"]
    for by_cache in results["attributes"].values():
        assert list(by_cache) == ["bf16", "int2", "int2-off"]
        for scores in by_cache.values():
            assert set(scores["values"]) == {
                "background", "color", "kind", "size", "motion", "all", "number of things"
            }  # fmt: skip
            for name, values in scores["values"].items():
                assert len(values) == 4 and scores["mean_and_error"][name][0] == pytest.approx(np.mean(values))
            assert np.mean(scores["values"]["kind"]) == 0  # an untrained model draws no things
    assert list(results["identity"]) == ["open, whole", "open, emptied", "full, whole", "full, emptied"]
    printed = capsys.readouterr().out
    assert "frames 24-48 of 4 prompts" in printed and "percent kept" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    with Image.open(tmp_path / "demo_sheet.png") as sheet:
        assert sheet.width <= 1400


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--prompts", "5"], "even number of at least 4"),
        (["--prompts", "2"], "even number of at least 4"),
        (["--frames", "47"], "at least 48"),
        (["--codecs", "int3"], "unknown codec 'int3'"),
        (["--codecs", "bf16", "bf16"], "none twice"),
        (["--codecs", "fp32", "bf16", "int8", "int4", "int2"], "at most 4"),
        (["--threads", "0"], "at least 1"),
        (["--steps", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(given)
    assert said in capsys.readouterr().err
