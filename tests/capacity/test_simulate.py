"""Traces and the simulation: every stream is admitted or rejected once, in order, and never beyond the pages."""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.look_back import SlidingLookBack
from pagedvid.capacity.simulate import Fleet, simulate
from pagedvid.capacity.sizing import Question, answer
from pagedvid.capacity.trace import read_trace
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.units import GIB

INT2 = StreamCodecs("int2")
TOOL = Path(__file__).parents[2] / "tools" / "make_trace.py"


def question(memory=20 * GIB, **changes):
    card = find_card("self-forcing")
    return replace(Question(card, card.resolution, card.window, memory, "none"), **changes)


def memory_for(num_streams, codecs=INT2):
    """Memory in which exactly that many long streams fit."""
    asked = question()
    row = answer(asked, "", codecs)
    return row.stream_bytes * num_streams + row.workspace_bytes + row.stream_bytes // 2


def trace(tmp_path, *lines):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def run(tmp_path, asked, lines, num_gpus=1, **options):
    arrivals = read_trace(trace(tmp_path, *lines), asked)
    return simulate(Fleet.of(asked, INT2, arrivals, num_gpus, **options), arrivals)


def stream(start, length=60, **more):
    return {"start_seconds": start, "length_seconds": length, **more}


def test_streams_wait_for_those_before_them(tmp_path):
    asked = question(memory_for(2))
    result = run(tmp_path, asked, [stream(0), stream(10), stream(20), stream(30)])
    assert (result.num_admitted, result.num_queued) == (4, 2)
    assert result.waits.most == pytest.approx(40)  # the third takes the place of the first, after 60 s
    assert result.waits.mean == pytest.approx((0 + 0 + 40 + 40) / 4)
    assert (result.peak_streams, result.peak_queue) == (2, 2)


def test_more_gpus_leave_nobody_waiting(tmp_path):
    result = run(tmp_path, question(memory_for(2)), [stream(0), stream(10), stream(20), stream(30)], num_gpus=2)
    assert (result.num_queued, result.waits.most, result.peak_streams) == (0, 0.0, 4)


def test_streams_give_up_when_their_patience_ends(tmp_path):
    lines = [stream(0, 100), stream(10, 5), stream(95, 5)]
    result = run(tmp_path, question(memory_for(1)), lines, max_wait_seconds=20.0)
    assert (result.num_admitted, result.num_gave_up) == (2, 1)
    assert result.waits.most == pytest.approx(5)


def test_one_that_leaves_in_the_very_moment_makes_room(tmp_path):
    result = run(tmp_path, question(memory_for(1)), [stream(0, 60), stream(60, 60)], max_wait_seconds=0.0)
    assert (result.num_admitted, result.num_queued) == (2, 0)


def test_the_head_of_the_queue_blocks_those_behind_it(tmp_path):
    asked = question(memory_for(2))
    small = stream(20, 60, resolution="416x240")
    result = run(tmp_path, asked, [stream(0), stream(5, 60, num_branches=2), small])
    assert result.num_queued == 2  # the small one would fit at once, but the guided one came first


def test_streams_larger_than_a_gpu_are_rejected(tmp_path):
    result = run(tmp_path, question(memory_for(1)), [stream(0, num_branches=2), stream(1)], num_gpus=5)
    assert (result.num_admitted, result.num_too_large) == (1, 1)


def test_a_limit_of_streams_per_gpu(tmp_path):
    result = run(tmp_path, question(), [stream(t) for t in range(4)], num_gpus=2, max_streams=1)
    assert (result.peak_streams, result.num_queued) == (2, 2)


def test_short_videos_reserve_less_and_one_chunk_nothing(tmp_path):
    asked = question(memory_for(1))
    lines = [stream(0, 60)] + [stream(1, 0.5)] * 3  # half a second is one chunk, which nobody reads
    assert run(tmp_path, asked, lines).num_queued == 0


def test_periods_add_up(tmp_path):
    result = run(tmp_path, question(memory_for(4)), [stream(0, 50), stream(50, 50), stream(100, 10)])
    assert len(result.periods) == 24
    assert result.mean_pages_ratio == pytest.approx(sum(p.mean_pages_ratio for p in result.periods) / 24)
    assert result.peak_pages_ratio == max(p.peak_pages_ratio for p in result.periods)
    assert all(p.mean_streams == pytest.approx(1) for p in result.periods)


@pytest.mark.parametrize(
    "codecs",
    [
        StreamCodecs("int4/int2"),
        StreamCodecs("klt2", sink="int8", newest="bf16"),
        StreamCodecs("int2", layers=((3, 5, "int8/bf16"),)),
        StreamCodecs(ChunkCodecs.read("int4", heads=[(0, 0, 4, None), (7, 2, 2, "bf16")])),
        StreamCodecs("int2", newest="bf16", look_back=[(layer, 0, layer % 9, 1, False) for layer in range(30)]),
    ],
    ids=str,
)
def test_any_codecs_take_the_pages_that_they_reserve(tmp_path, codecs):
    asked = question(memory_for(3, codecs))
    arrivals = read_trace(trace(tmp_path, *(stream(start) for start in range(5))), asked)
    fleet = Fleet.of(asked, codecs, arrivals, 1)
    result = simulate(fleet, arrivals)
    assert (result.peak_streams, result.num_queued) == (3, 2)
    size = asked.size.on_pages_for(codecs)
    assert result.peak_pages_ratio == pytest.approx(3 * size.pages(codecs) / fleet.pool_pages)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "trace.jsonl:2: not valid JSON"),
        ("[" * 100_000, "trace.jsonl:2: not valid JSON"),
        ("7", "trace.jsonl:2: each line must be a JSON object"),
        ({"length_seconds": 5}, "trace.jsonl:2: start_seconds is None"),
        (stream(-1), "trace.jsonl:2: start_seconds is -1; allowed is 0 to"),
        (stream(0, 0), "trace.jsonl:2: length_seconds is 0; allowed is more than 0"),
        (stream(0, "long"), "trace.jsonl:2: length_seconds is 'long'"),
        (stream(0, True), "trace.jsonl:2: length_seconds is True"),
        (stream(0, float("nan")), "trace.jsonl:2: not valid JSON: NaN is not a number"),
        (stream(1e300), "trace.jsonl:2: start_seconds is 1e"),
        (stream(0, num_branches=0), "trace.jsonl:2: num_branches is 0"),
        (stream(0, num_branches="two"), "trace.jsonl:2: num_branches is 'two'"),
        (stream(0, resolution="big"), "trace.jsonl:2: resolution is 'big'"),
        (stream(0, resolution="850x480"), "trace.jsonl:2: resolution 850x480 does not fit"),
        (stream(0, size=3), "trace.jsonl:2: unknown key 'size'"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        read_trace(trace(tmp_path, stream(0), line), question())


def test_traces_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl", question())
    with pytest.raises(ConfigError, match="has no arrivals"):
        read_trace(trace(tmp_path, "", " "), question())
    arrivals = read_trace(trace(tmp_path, stream(0)), question())
    with pytest.raises(ConfigError, match="too many to simulate"):
        Fleet.of(question(2**50), INT2, arrivals, 1000)
    with pytest.raises(ConfigError, match="would take too long"):
        Fleet.of(question(look_back=SlidingLookBack(0, 10_000)), INT2, arrivals, 1)
    with pytest.raises(CapacityError, match="no memory is left for pages"):
        Fleet.of(question(2**27), INT2, arrivals, 1)


def test_lines_may_come_in_any_order(tmp_path):
    arrivals = read_trace(trace(tmp_path, stream(9), stream(3), "", stream(5)), question())
    assert [arrival.start_seconds for arrival in arrivals] == [3, 5, 9]


def test_ten_thousand_streams_of_the_generator_on_a_thousand_gpus(tmp_path):
    spec = importlib.util.spec_from_file_location("make_trace", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path / "day.jsonl"
    tool.main(
        ["--out", str(path), "--median-seconds", "3600", "--guided", "0.3", "--resolutions", "832x480", "416x240"]
    )
    asked = question(12 * GIB)
    started = time.perf_counter()
    arrivals = read_trace(path, asked)
    result = simulate(Fleet.of(asked, INT2, arrivals, 1000), arrivals)
    assert time.perf_counter() - started < 60
    assert len(arrivals) == result.num_admitted == 10_000
    hours = [arrival.start_seconds / 3600 for arrival in arrivals]
    evening, morning = (sum(hour - 2 < h < hour + 2 for h in hours) for hour in (20, 8))
    assert evening > 4 * morning
    assert {arrival.num_branches for arrival in arrivals} == {1, 2}
    assert len({arrival.resolution for arrival in arrivals}) == 2
