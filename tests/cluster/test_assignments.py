"""Prompts go where there is room, nobody keeps more than a share, and the videos of a lost worker go to others."""

from __future__ import annotations

import random

from pagedvid.cluster.assignments import MAX_TRIES, MAX_UNADMITTED, Assignments
from pagedvid.engine.requests import VideoRequest


def requests(*lengths: int) -> list[VideoRequest]:
    return [VideoRequest(str(number), "red", length) for number, length in enumerate(lengths)]


def taken(assignments: Assignments, worker: int) -> list[str]:
    ids = []
    while request := assignments.take(worker):
        ids.append(request.id)
    return ids


def test_one_worker_takes_what_its_pool_admits():
    assignments = Assignments(requests(*[8] * 10), 1)
    assert taken(assignments, 0) == ["0", "1", "2", "3"]
    assert MAX_UNADMITTED == 4
    assignments.admit("0")
    assignments.admit("1")
    assert taken(assignments, 0) == ["4", "5"]


def test_nobody_keeps_more_than_a_share():
    assignments = Assignments(requests(*[8] * 16), 2)
    assert len(taken(assignments, 0)) == len(taken(assignments, 1)) == 4  # half of what half of the workers would get


def test_long_and_short_videos_balance_themselves():
    """Two workers of one speed are both busy until little more than the longest video is left."""
    chance = random.Random(0)
    lengths = [chance.choice((8, 16, 200)) for _ in range(60)]
    assignments, held = Assignments(requests(*lengths), 2), {0: {}, 1: {}}
    ends, now = {}, 0
    while True:
        for worker in held:
            while request := assignments.take(worker):
                held[worker][request.id] = request.num_frames
                assignments.admit(request.id)
        if not any(held.values()):
            break
        now += 1
        for worker, videos in held.items():
            if videos:
                id = next(iter(videos))  # the oldest first
                videos[id] -= 8
                assignments.progress(id, 8)
                ends[worker] = now
                if videos[id] <= 0:
                    del videos[id]
                    assignments.end(id)
    assert abs(ends[0] - ends[1]) <= 200 // 8
    assert now <= sum(lengths) / 8 / 2 + 200 // 8


def test_videos_of_a_lost_worker_come_first_and_others_keep_theirs():
    assignments = Assignments(requests(*[8] * 8), 2)
    assert taken(assignments, 0) == ["0", "1"]
    assert taken(assignments, 1) == ["2", "3"]
    assert assignments.lose(0) == (["1", "0"], [])
    assert not assignments.is_held("0", 0)
    assert taken(assignments, 2)[:2] == ["0", "1"]
    assert assignments.is_held("2", 1)
    assert assignments.is_held("0", 2)


def test_a_prompt_that_kills_workers_is_tried_alone_and_given_up():
    assignments, worker = Assignments(requests(8, 8, 8), 1), 0
    given_up = []
    while not given_up:
        ids = taken(assignments, worker)
        if "0" in ids:  # it kills, and the others beside it are blamed, too
            for id in ids:
                assignments.admit(id)
            _, given_up = assignments.lose(worker)
            worker += 1
        else:
            for id in ids:
                assignments.end(id)
    assert (given_up, worker) == (["0"], MAX_TRIES)
    assert sorted(taken(assignments, worker)) == ["1"]
    assignments.end("1")
    assert taken(assignments, worker) == ["2"]


def test_videos_that_only_waited_are_not_blamed():
    assignments = Assignments(requests(8, 8), 1)
    for worker in range(MAX_TRIES - 1):
        taken(assignments, worker)
        assignments.admit("0")
        assert assignments.lose(worker)[1] == []
    assert taken(assignments, MAX_TRIES) == ["1"]  # "0" has to wait until nothing is beside it
