"""How many streams fit: what the tool promises is what the cache grants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pagedvid.attention import measure
from pagedvid.cache.manager import CacheManager
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import stream_bytes
from pagedvid.capacity import workspace
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.gpus import gpu_memory, gpu_names
from pagedvid.capacity.look_back import RebuiltLookBack, SlidingLookBack
from pagedvid.capacity.sizing import CODEC_CHOICES, Question, answer, answers, check_memory, longest_look_back
from pagedvid.capacity.target import Target, parse_targets, reach, target_question
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.units import GIB, MIB


def question(model="self-forcing", memory=60 * GIB, weights="none", **changes):
    card = find_card(model)
    return replace(Question(card, card.resolution, card.window, memory, weights), **changes)


def by_name(asked):
    return {row.name: row for row in answers(asked, CODEC_CHOICES)}


def test_self_forcing_in_60_gib():
    rows = by_name(question())
    assert {name: rows[name].num_streams for name in ("bf16", "int4", "int2")} == {"bf16": 10, "int4": 37, "int2": 74}
    assert rows["bf16"].stream_bytes == 7 * 4680 * 184_320  # pages of bf16 hold this chunk without padding
    assert rows["bf16"].stream_bytes >= 7 * rows["int2"].stream_bytes
    assert rows["int2"].ratio_to_bf16 >= 7
    assert rows["int2"].bits_per_value == pytest.approx(37 * 128 / 4680 * (2 + 32 / 128), abs=0.001)


CHOICES = {
    **CODEC_CHOICES,
    "int4/int2": StreamCodecs("int4/int2"),
    "klt2": StreamCodecs("klt2"),
    "klt1.5/klt2": StreamCodecs("klt1.5/klt2", sink="int8/int4", newest="bf16"),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("model", ["demo", "hy-worldplay-8b", "skyreels-v2-1.3b"])
def test_the_cache_admits_exactly_what_is_promised(model, name):
    asked = question(model, memory=32 * MIB if model == "demo" else 60 * GIB)
    row = answer(asked, name, CHOICES[name])
    size, tables = asked.size, asked.card.shape.num_tables
    # The pool per table, so that its stack of free pages stays small: every count is a multiple of the tables.
    shape = size.on_pages_for(row.codecs).shape
    spec = CacheSpec(
        1,
        1,
        asked.card.head_dim,
        codecs=row.codecs,
        tokens_per_frame=shape.tokens_per_frame,
        frames_per_block=shape.frames_per_block,
    )
    assert row.pool_bytes // row.pool_pages == spec.shape.page_bytes
    memory = row.pool_bytes // row.pool_pages * (row.pool_pages // tables)
    cache, opened = CacheManager(spec, memory, "meta"), 0
    branches = tuple(map(str, range(size.num_branches)))
    with pytest.raises(CapacityError):
        while True:
            cache.open(size.window, size.chunk_tokens, branches=branches, max_chunks=size.max_commits)
            opened += 1
    assert opened == row.num_streams


def test_bytes_are_those_that_geometry_reserves():
    asked = question("skyreels-v2-1.3b")
    row = answer(asked, "mixed", CODEC_CHOICES["mixed"])
    assert row.stream_bytes == stream_bytes(asked.card.shape, asked.size.window, row.codecs, 5 * 2040, num_branches=2)


@pytest.mark.parametrize(
    "codecs",
    [
        StreamCodecs("int4/int2", layers=((0, 1, "int8/bf16"),)),
        StreamCodecs("int4", sink="int8", look_back=[(0, 0, 2, 1, False), (3, 1, 1, 2, True)]),
    ],
    ids=["layers", "windows of heads"],
)
def test_tables_apart_are_admitted_as_promised(codecs):
    """Tables of different lengths, so the whole model is built, with its real number of pages."""
    asked = question("demo", memory=32 * MIB)
    row, size = answer(asked, "", codecs), asked.size
    card = asked.card
    spec = CacheSpec(card.num_layers, card.num_kv_heads, card.head_dim, codecs=codecs)
    cache, opened = CacheManager(spec, row.pool_bytes, "meta"), 0
    assert cache.pool.num_pages == row.pool_pages
    with pytest.raises(CapacityError):
        while True:
            cache.open(size.window, size.chunk_tokens)
            opened += 1
    assert opened == row.num_streams > 1
    rows = by_name(asked)
    assert rows["int2"].stream_bytes < row.stream_bytes < rows["int8"].stream_bytes


def test_klt_in_60_gib():
    """Wan 1.3B: 1560 blocks of 3 tokens, 43 in a page of 32 rows in 2 bits, so 37 pages; and 37 of 24 rows in 1.5."""
    rows = {
        row.name: row for row in answers(question(), {"klt2": StreamCodecs("klt2"), "klt1.5": StreamCodecs("klt1.5")})
    }
    assert rows["klt2"].stream_bytes == 7 * 2 * 360 * 37 * 32 * 128
    assert rows["klt1.5"].stream_bytes == 7 * 2 * 360 * 37 * 24 * 128
    assert rows["klt2"].chunk_bytes == 360 * 2 * 37 * 32 * 128  # its keys are not corrected
    assert rows["klt2"].bits_per_value == pytest.approx(8 * 37 * 32 / 4680)
    assert rows["klt2"].ratio_to_bf16 == pytest.approx(260 * 36 / (37 * 32))
    assert rows["klt2"].num_streams > by_name(question())["int2"].num_streams


def test_all_of_the_memory_is_accounted_for():
    asked = question(weights="bf16", reserve_bytes=3 * GIB)
    row = answer(asked, "int2", StreamCodecs("int2"))
    left = asked.memory_bytes - asked.weights_bytes - asked.reserve_bytes - row.workspace_bytes - row.pool_bytes
    assert 0 <= left < row.pool_bytes // row.pool_pages


def test_mixed_pages_cost_what_they_hold():
    rows = by_name(question(look_back=SlidingLookBack(1, 6)))
    assert rows["int2"].stream_bytes < rows["mixed"].stream_bytes < rows["bf16"].stream_bytes
    assert rows["int2"].bits_per_value < rows["mixed"].bits_per_value < 16
    mean = (9.046 + 5 * 2.277 + 16) / 7  # one sink in int8, five in int2, the newest in bf16
    assert rows["mixed"].bits_per_value == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("model", ["self-forcing", "longcat-13.6b"])
@pytest.mark.parametrize("num_streams", [1, 5])
def test_the_longest_look_back_fits_and_the_next_does_not(model, num_streams):
    asked, codecs = question(model), StreamCodecs("int2")
    longest = longest_look_back(asked, codecs, num_streams)

    def streams(length):
        return answer(asked.with_look_back(longest.with_length(length)), "", codecs).num_streams

    length = longest.num_frames(frames_per_chunk=1)  # recent chunks without sinks, or frames
    assert streams(length) >= num_streams > streams(length + 1)


def test_no_look_back_fits():
    assert longest_look_back(question(memory=300 * MIB), StreamCodecs("bf16"), 1) is None


def test_weights_that_fill_the_memory():
    with pytest.raises(CapacityError, match=r"bf16 weights of krea-14b take 26.7 GiB.*24.0 GiB.*--weights fp8"):
        check_memory(question("krea-14b", memory=24 * GIB, weights="bf16"))
    with pytest.raises(CapacityError, match=r"and the reserve 11\.0 GiB"):
        check_memory(question("krea-14b", memory=24 * GIB, weights="fp8", reserve_bytes=11 * GIB))


def test_an_unknown_number_format_of_weights():
    with pytest.raises(ConfigError, match="allowed for demo are bf16, none"):
        answers(question("demo", weights="fp8"), CODEC_CHOICES)


def test_when_nothing_fits_the_largest_setting_that_does_is_named():
    with pytest.raises(
        CapacityError, match=r"int2 needs 11.0 GiB.*longest window that fits is 0\+\d+ \(.* s\) in int2"
    ):
        answers(question("skyreels-v2-14b", memory=8 * GIB), CODEC_CHOICES)
    with pytest.raises(CapacityError, match="not even the shortest window fits"):
        answers(question("magi-1-24b", memory=GIB), CODEC_CHOICES)


def test_branches_multiply_a_stream():
    once, twice = (by_name(question(num_branches=number))["int2"] for number in (1, 2))
    assert twice.stream_bytes == 2 * once.stream_bytes
    assert twice.current_bytes == 2 * once.current_bytes


def test_what_the_original_keeps_twice_is_stored_once():
    card = find_card("hy-worldplay-5b")
    assert card.original_copies == 2
    assert card.shape.num_kv_heads == card.num_kv_heads


def test_targets_are_read():
    assert parse_targets(["streams=16"]) == Target(16, None)
    assert parse_targets(["seconds=2.5", "streams=3"]) == Target(3, 2.5)
    for wrong in (
        ["streams"],
        ["streams=0"],
        ["streams=x"],
        ["seconds=-1"],
        ["seconds=nan"],
        ["minutes=3"],
        ["seconds="],
    ):
        with pytest.raises(ConfigError, match="--target"):
            parse_targets(wrong)
    with pytest.raises(ConfigError, match="twice"):
        parse_targets(["streams=1", "streams=2"])


def test_a_target_of_streams_finds_codec_and_window():
    found = {item.answer.name: item for item in reach(question(), Target(num_streams=30), CODEC_CHOICES)}
    assert {name: item.reaches for name, item in found.items()} == {
        "bf16": False, "int8": False, "int4": True, "int2": True, "mixed": False,
    }  # fmt: skip
    assert found["int4"].longest == SlidingLookBack(0, 7)
    assert found["int8"].longest.recent_chunks < 6


def test_a_target_of_seconds_sets_the_window():
    wanted = target_question(question(), Target(seconds=60))
    assert wanted.look_back == SlidingLookBack(0, 80)
    found = {item.answer.name: item for item in reach(question(), Target(seconds=60), CODEC_CHOICES)}
    assert not found["bf16"].reaches and found["int2"].reaches
    assert target_question(question("longcat-13.6b"), Target(seconds=4)).look_back == RebuiltLookBack(15)


def test_a_target_out_of_reach():
    with pytest.raises(CapacityError, match=r"no codec reaches 100 stream.*int2 fits \d+"):
        reach(question(), Target(100, 60.0), CODEC_CHOICES)
    with pytest.raises(CapacityError, match="not even the shortest window"):
        reach(question(), Target(10_000), CODEC_CHOICES)


def test_gpus_by_name():
    assert gpu_memory("H100") == pytest.approx(78.6 * GIB)
    assert all(0 < gpu_memory(name) < 200 * GIB for name in gpu_names())
    with pytest.raises(ConfigError, match="did you mean"):
        gpu_memory("h1000")


def test_the_workspace_samples_as_many_queries_as_a_commit():
    assert workspace.MEASURED_QUERIES == measure.MEASURED_QUERIES
