"""Accepted videos survive kill -9. See kills.py; `python benchmarks/soak.py --kills 20` does it twenty times."""

from __future__ import annotations

import pytest

from tests.service.kills import kill_repeatedly


@pytest.mark.timeout(600)
def test_accepted_videos_are_finished_once_and_with_the_right_frames(tmp_path):
    report = kill_repeatedly(2, seed=0, folder=tmp_path)
    assert report.findings == []
    assert len(report.accepted) >= 4 and sum(report.num_unfinished_at_kills) >= 2
