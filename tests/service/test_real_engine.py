"""The worker with a real engine over the toy model; frames are equal to the bit."""

from __future__ import annotations

import pytest

from pagedvid.engine.checkpoint_file import Origin
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import IntegrityError
from pagedvid.service.checkpoint_files import OriginFiles
from pagedvid.service.worker import Worker
from tests.engine.toy_model import toy_engine
from tests.engine.verbs import alone
from tests.service.listener import WAIT_SECONDS, Listener, wait_until
from tests.service.runs import COURSES, Run
from tests.service.test_recovery import assert_same

BREAKS = ((13, None), (22, 1))
"""(Step that breaks the engine, how often snapshots are taken)."""


def build():
    return toy_engine(codecs="int2", reproducible=True, policy="round_robin")


@pytest.mark.parametrize(
    ("course", "begin", "break_"),
    [*((course, 4, BREAKS[number % 2]) for number, course in enumerate(COURSES)), ("forks", 0, BREAKS[0])],
)
def test_an_engine_that_breaks(course, begin, break_):
    """At round 4 a chunk is half done; at round 0 the video waits. test_recovery.py breaks a faster engine anywhere."""
    quiet = Run(course, begin, build=build)
    step, every = break_
    assert quiet.listener.num_rebuilds == 0 and quiet.num_steps > step
    broken = Run(
        course, begin, {step: IntegrityError("page 7 is in two chunks")}, every, build=build, is_late=step % 2 == 0
    )
    assert broken.listener.num_rebuilds == 1
    assert_same(broken, quiet)


def test_a_model_that_breaks_for_one_video_is_its_own_affair():
    quiet = Run(build=build)
    failing = Run(build=build, prompt="1 raises@0.5")
    assert failing.listener.failures() == {"a": "FloatingPointError"} and failing.listener.num_rebuilds == 0
    assert (failing.frames["other"] == quiet.frames["other"]).all()
    assert failing.supervised.engine.cache.pool.num_used_pages == 0


def files_of(engine) -> OriginFiles:
    return OriginFiles(Origin(engine.model.name, engine.model.geometry, engine.cache.spec, engine.window))


def test_another_worker_goes_on_from_the_files_of_one_that_was_stopped(tmp_path):
    requests = [VideoRequest(id, "1", 24, seed=seed) for seed, id in enumerate("abc")]
    first, second = Listener(), Listener()
    worker = Worker(build, first, checkpoints=files_of)
    worker.start()
    for request in requests:
        worker.submit(request)
    wait_until(lambda: len(first.chunks["a"]) > 1)
    paths = worker.stop(tmp_path, seconds=WAIT_SECONDS)
    assert set(paths) == {"a", "b", "c"} - {id for id in "abc" if "gone" in first.states(id)}

    worker = Worker(build, second, checkpoints=files_of)
    worker.start()
    assert [worker.restore(path).result(WAIT_SECONDS) for path in paths.values()] == list(paths)
    second.wait_for_end(*paths)
    worker.stop()
    for request in requests:
        first.chunks[request.id] += second.chunks[request.id]
        assert (first.frames(request.id) == alone(request, codecs="int2")).all()
    assert first.failures() == second.failures() == {}
