"""The same as in test_recovery.py with a real engine over the toy model, at some steps; frames are equal to the bit."""

from __future__ import annotations

import pytest

from pagedvid.errors import IntegrityError
from tests.engine.toy_model import toy_engine
from tests.service.runs import COURSES, Run
from tests.service.test_recovery import assert_same

SNAPSHOTS = {9: None, 16: 1, 31: 2}
"""How often they are taken, by the step that breaks the engine."""


def build():
    return toy_engine(codecs="int2", reproducible=True)


@pytest.mark.parametrize("course", COURSES)
def test_an_engine_that_breaks(course):
    quiet = Run(course, begin=4, build=build)
    assert quiet.listener.num_rebuilds == 0 and quiet.num_steps > max(SNAPSHOTS)
    for step, every in SNAPSHOTS.items():
        fault = {step: IntegrityError("page 7 is in two chunks")}
        broken = Run(course, 4, fault, every, build=build, is_late=step % 2 == 0)
        assert broken.listener.num_rebuilds == 1
        assert_same(broken, quiet)


def test_a_model_that_breaks_for_one_video_is_its_own_affair():
    quiet = Run(build=build)
    failing = Run(build=build, prompt="1 raises@0.5")
    assert failing.listener.failures() == {"a": "FloatingPointError"} and failing.listener.num_rebuilds == 0
    assert (failing.frames["other"] == quiet.frames["other"]).all()
    assert failing.supervised.engine.cache.pool.num_used_pages == 0
