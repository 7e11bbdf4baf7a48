"""A minute of everything at once: what is left afterwards, and what was wrong meanwhile. See soak/run.py.

`python benchmarks/soak.py` runs the same for twenty minutes.
"""

from __future__ import annotations

import pytest

from tests.service.soak.run import soak

SECONDS = 60.0


@pytest.mark.timeout(600)
def test_nothing_is_left_and_nothing_was_wrong(tmp_path):
    report = soak(SECONDS, seed=0, folder=tmp_path)
    assert report.findings == []
    # It must have been shaken, too.
    assert report.num_compared >= 3 and report.num_restarts >= 1
    assert report.most_swapped_bytes > 0
    assert len(report.faults) >= 3
    for verb in ("create", "pause", "resume", "prompt", "fork", "extend", "delete", "watch", "read"):
        assert report.calls.get(verb, 0) > 0, verb
