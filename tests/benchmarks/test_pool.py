"""The bookkeeping benchmark on a tiny shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.window import Window
from pool import OPERATIONS, Pool, main


def test_pool_is_as_before_after_a_repetition() -> None:
    pool = Pool(KVShape(2, 3, 32), 200, Window(1, 2), max_streams=3)
    pool.fill(3)
    before = pool._manager.stats()
    times = pool.time_one_chunk()
    after = pool._manager.stats()
    assert set(times) == set(OPERATIONS)
    assert min(times.values()) > 0
    assert (
        (after.num_streams, after.num_chunks, after.pages_used)
        == (3, 3, 3 * 2 * 2 * 3 * 2)
        == (
            before.num_streams,
            before.num_chunks,
            before.pages_used,
        )
    )
    assert after.pages_peak == after.pages_used + 2 * 2 * 3 * 2  # the timed chunk really took pages
    pool.check()


def test_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--streams", "4", "1", "--repetitions", "3", "--layers", "2", "--out", str(tmp_path / "x.json")])
    results = json.loads((tmp_path / "x.json").read_text())["results"]
    assert results["pages"] == 2 * 2 * 12 * 37
    assert list(results["microseconds"]) == ["1", "4"]
    assert results["growth"]["commit"] == pytest.approx(
        results["microseconds"]["4"]["commit"] / results["microseconds"]["1"]["commit"]
    )
    assert "4 / 1" in capsys.readouterr().out
