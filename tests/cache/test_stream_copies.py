"""A stream that was copied out and in again is the one that never was: same attention, same pages, same promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import StreamImage
from pagedvid.cache.window import Commit, Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.tables_file import Calibration
from pagedvid.errors import CapacityError, ConfigError, IntegrityError, StateError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import TableRope, random_qkv
from tests.cache.bookkeeping import commit, live, make_manager
from tests.codecs.klt.scenes import FRAME_TOKENS, HEAD_DIM, NUM_FRAMES, SPAN_TOKENS, tables

ROPE = TableRope("half", HEAD_DIM)
LOOK_BACK = [(0, 1, 1, 1, False), (1, 0, 0, 2, True)]
SCENES = {
    "int2": CacheSpec(2, 2, HEAD_DIM, 4, codecs=StreamCodecs("int2", sink="int8", newest="bf16")),
    "int2 by page": CacheSpec(2, 2, HEAD_DIM, codecs=StreamCodecs("int4/int2"), page_rows=8, correction_unit="page"),
    "int2 by variance": CacheSpec(2, 2, HEAD_DIM, codecs=StreamCodecs("int2"), correction="variance"),
    "klt by head": CacheSpec(
        2,
        2,
        HEAD_DIM,
        codecs=StreamCodecs(
            ChunkCodecs.read("klt2", heads=[(0, 0, 0, "int4/klt1.5"), (1, 1, 1, "bf16")]),
            newest="int8",
            look_back=LOOK_BACK,
        ),
        tokens_per_frame=FRAME_TOKENS,
        frames_per_block=NUM_FRAMES,
        correction="measured",
    ),
    "bf16": CacheSpec(2, 2, HEAD_DIM, codecs=StreamCodecs("bf16", look_back=LOOK_BACK)),
}


def new_cache(spec: CacheSpec) -> PagedKVCache:
    spec = replace(spec, debug_checks=True)
    calibration = Calibration.of("small", [tables("keys")] * 2, [tables("values")] * 2)
    return PagedKVCache(spec, "2MiB", book=CodecBook(spec.shape.page, spec.num_kv_heads, calibration))


def forward(cache: PagedKVCache, stream: Stream, seed: int, *, commits: bool) -> Tensor:
    """Both branches, all layers [L, T, Hq, D]."""
    ranges = [QueryRange(stream, branch, commit=commits, tag=(branch, seed)) for branch in stream.branches]
    with cache.step(ranges) as step:
        outs = [
            step.attend(layer, *random_qkv(cache, step.plan.num_tokens, 10 * seed + layer), ROPE) for layer in (0, 1)
        ]
    cache.check()
    return torch.stack(outs)


def video(cache: PagedKVCache, positions: str = "absolute") -> Stream:
    """A sink, a pin, recent chunks, one that was dropped, and the newest, which is pinned, too."""
    branches = ("cond", "uncond")
    stream = cache.open(Window(1, 4, positions), SPAN_TOKENS, branches=branches, max_chunks=12)
    for seed in range(7):
        forward(cache, stream, seed, commits=True)
        if seed == 1:
            cache.pin(stream, 1, "uncond")
    cache.drop(stream, [4])
    cache.pin(stream, 6)
    return stream


def swapped(cache: PagedKVCache, stream: Stream) -> Stream:
    """Out and in again, on pages that held something else in between."""
    image = cache.copy_out(stream)
    cache.release(stream)
    assert cache.pool.num_used_pages == 0
    cache.pool.records.fill_(255)
    return cache.copy_in(image)


@pytest.mark.parametrize("positions", ["absolute", "window"])
@pytest.mark.parametrize("name", SCENES)
def test_attention_goes_on_bit_for_bit(name, positions):
    quiet, busy = new_cache(SCENES[name]), new_cache(SCENES[name])
    stays, moves = video(quiet, positions), video(busy, positions)
    for seed in range(20, 23):
        moves = swapped(busy, moves)
        busy.check()
        for commits in (False, True):
            assert torch.equal(
                forward(quiet, stays, seed, commits=commits), forward(busy, moves, seed, commits=commits)
            )
    assert busy.reserved_pages == quiet.reserved_pages
    assert busy.pool.num_used_pages == quiet.pool.num_used_pages


def test_everything_that_a_chunk_has_comes_back():
    """Its rotary tables and its tag as the same objects, so that nothing is compared or looked up again."""
    for name, spec in SCENES.items():
        cache = new_cache(spec)
        stream = video(cache)
        before = list(stream.chunks())
        held = [cache.pool.read(chunk.table.ids) for chunk in before]
        stream = swapped(cache, stream)
        for old, new, records in zip(before, stream.chunks(), held, strict=True):
            for field in ("index", "first_token", "position", "num_tokens", "codecs", "runs", "digests", "tag"):
                assert getattr(old, field) == getattr(new, field), field
            assert old.id != new.id and new.tag is old.tag and new.ropes.keys() == {0, 1}
            assert all(new.ropes[layer] is rope for layer, rope in old.ropes.items())
            for x, y in ((old.alpha, new.alpha), (old.variance, new.variance)):
                assert x is y is None or torch.equal(x, y)
            assert torch.equal(cache.pool.read(new.table.ids), records)
        assert any(chunk.runs for chunk in before) == (name == "int2 by page")
        assert any(chunk.variance is not None for chunk in before) == (name in ("int2 by variance", "klt by head"))


def test_copying_out_changes_nothing_and_counts_every_byte():
    cache = new_cache(SCENES["int2"])
    stream = video(cache)
    before, chunks = cache.stats(), list(stream.chunks())
    image = cache.copy_out(stream)
    assert cache.stats() == before and list(stream.chunks()) == chunks
    alphas = sum(chunk.alpha is not None for chunk in chunks)
    assert image.num_pages == stream.held_pages
    assert image.num_bytes == stream.held_pages * cache.pool.page_bytes + alphas * 4 * 4
    assert cache.image_pages(image) == stream.peak_pages


def test_a_copy_reserves_its_peak_and_its_pins_and_shares_nothing():
    manager = make_manager(8 + 2 + 8 + 2)
    stream = manager.open(Window(1, 2), 100)
    for _ in range(4):
        commit(manager, stream)
    manager.pin(stream, 2)
    copy = manager.copy_in(manager.copy_out(stream))
    manager.check()
    assert manager.reserved_pages == 20 and manager.pool.num_used_pages == 12
    assert manager.stats().num_shared_chunks == 0 and live(copy) == live(stream) == [0, 2, 3]
    commit(manager, copy, stream)
    manager.unpin(copy, 2)
    assert (live(copy), live(stream)) == ([0, 3, 4], [0, 2, 3, 4])
    manager.release(stream)
    manager.check()
    assert manager.reserved_pages == 8


def test_the_pin_of_a_chunk_that_is_not_settled_is_reserved_in_its_final_codec():
    manager = make_manager(100, StreamCodecs("bf16", newest="int2"))
    stream = manager.open(Window(0, 2), 100)
    commit(manager, stream)
    manager.pin(stream, 0)
    reserved, image = manager.reserved_pages, manager.copy_out(stream)
    manager.release(stream)
    assert manager.image_pages(image) == reserved == manager.pages_needed(Window(0, 2), 100) + 12
    manager.copy_in(image)
    manager.check()
    assert manager.reserved_pages == reserved


def test_what_does_not_fit_is_refused_with_the_numbers_and_takes_nothing():
    manager = make_manager(19)
    stream = manager.open(Window(1, 2), 100)
    for _ in range(3):
        commit(manager, stream)
    manager.pin(stream, 1)
    image = manager.copy_out(stream)
    before = manager.stats()
    with pytest.raises(CapacityError, match=r"a copied stream of 6 pages needs 10 pages; 10 of 19 .* 9 are left"):
        manager.copy_in(image)
    assert manager.stats() == before
    manager.check()


def test_a_failing_copy_gives_its_pages_back(monkeypatch):
    cache = new_cache(SCENES["bf16"])
    image = cache.copy_out(video(cache))
    before, write, num_written = cache.stats(), cache.pool.write, 0

    def failing(ids, records):
        nonlocal num_written
        num_written += 1
        if num_written == 3:
            raise MemoryError
        write(ids, records)

    monkeypatch.setattr(cache.pool, "write", failing)
    with pytest.raises(MemoryError):
        cache.copy_in(image)
    cache.check()
    assert cache.stats() == replace(before, pages_peak=cache.pool.peak_used_pages)


def test_forks_are_copied_and_each_knows_what_it_shares():
    manager = make_manager(60)
    stream = manager.open(Window(1, 2), 100)
    for _ in range(3):
        commit(manager, stream)
    assert manager.own_and_shared_pages(stream) == (6, 0)
    twin = manager.fork(stream)
    commit(manager, twin)
    assert manager.own_and_shared_pages(stream) == (2, 4) and manager.own_and_shared_pages(twin) == (2, 4)
    copy = manager.copy_in(manager.copy_out(twin))
    assert manager.own_and_shared_pages(copy) == (6, 0) and manager.own_and_shared_pages(twin) == (2, 4)
    manager.release(twin)
    manager.check()
    assert manager.own_and_shared_pages(stream) == (6, 0)


def test_a_thinned_head_that_only_one_of_two_forks_keeps_is_its_own():
    manager = make_manager(60, StreamCodecs("int2", look_back=[(0, 0, 0, 1, False)]), num_kv_heads=2)
    stream = manager.open(Window(0, 3), 100)
    commit(manager, stream)
    twin = manager.fork(stream)
    commit(manager, twin)
    assert manager.own_and_shared_pages(stream) == (2, 2) and manager.own_and_shared_pages(twin) == (4, 2)


def test_a_planned_stream_keeps_to_its_plan():
    plan = [Commit(100), Commit(50), Commit(100, drops=(0,)), Commit(70)]
    manager = make_manager(60)
    stream = manager.open(Window(0, 9), 100, commits=plan)
    for planned in plan[:2]:
        commit(manager, QueryRange(stream, num_tokens=planned.num_tokens, commit=True))
    manager.drop(stream, [0])
    peak = stream.peak_pages
    copy = manager.copy_in(manager.copy_out(stream))
    assert (copy.commits, copy.max_chunks, copy.peak_pages, live(copy)) == (tuple(plan), 4, peak, [1])
    with pytest.raises(StateError, match="opened to commit 100 tokens as chunk 2"):
        commit(manager, QueryRange(copy, num_tokens=70, commit=True))
    for planned in plan[2:]:
        commit(manager, QueryRange(copy, num_tokens=planned.num_tokens, commit=True))


def test_busy_and_released_streams_are_not_copied():
    manager = make_manager(20)
    stream = manager.open(Window(1, 2), 100)
    with manager.transaction([QueryRange(stream)]), pytest.raises(StateError, match="inside an open step"):
        manager.copy_out(stream)
    manager.release(stream)
    with pytest.raises(StateError, match="was released"):
        manager.copy_out(stream)
    with pytest.raises(StateError, match="was released"):
        manager.own_and_shared_pages(stream)


# ---------------------------------------------------------------------- images that do not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 8}, "head_dim 16 instead of 8"),
        ({"num_layers": 3, "num_kv_heads": 4}, "num_layers 2 instead of 3, num_kv_heads 2 instead of 4"),
        ({"page_rows": 20}, "page_rows 36 instead of 20"),
        ({"correction": "off"}, "correction 'measured' instead of 'off'"),
        ({"correction_unit": "page"}, "correction_unit 'chunk' instead of 'page'"),
        ({"tokens_per_frame": 10, "frames_per_block": 4}, "tokens_per_frame 1 instead of 10, frames_per_block 1"),
    ],
)
def test_the_image_of_another_cache_is_refused_by_what_differs(change, message):
    cache = new_cache(SCENES["int2"])
    image = cache.copy_out(video(cache))
    other = PagedKVCache(replace(SCENES["int2"], num_query_heads=None, **change), "1MiB")
    for use in (other.copy_in, other.image_pages):
        with pytest.raises(ConfigError, match=message):
            use(image)
    assert other.reserved_pages == other.pool.num_used_pages == 0


def test_codecs_without_tables_here_are_refused():
    spec = SCENES["klt by head"]
    cache = new_cache(spec)
    image = cache.copy_out(video(cache))
    other = PagedKVCache(replace(spec, codecs=StreamCodecs("int2"), page_rows=spec.shape.page_rows), "1MiB")
    with pytest.raises(ConfigError, match="needs tables of the model"):
        other.copy_in(image)


def test_a_damaged_image_is_refused():
    cache = new_cache(SCENES["int2"])
    image = cache.copy_out(video(cache))
    damages = {
        "pages of chunk": lambda chunk: replace(chunk, records_PB=chunk.records_PB[1:]),
        "alpha of chunk": lambda chunk: replace(chunk, alpha_LH=None),
        "variance of chunk": lambda chunk: replace(chunk, variance_LHD=torch.zeros(2, 2, 16)),
    }
    for message, damage in damages.items():
        damaged = image.with_chunks(lambda _, chunk, damage=damage: damage(chunk) if chunk.index == 5 else chunk)
        with pytest.raises(ConfigError, match=rf"{message} 5 in the image are .* The image is damaged"):
            cache.copy_in(damaged)
    for wrong in (None, "x", cache.streams[0]):
        with pytest.raises(ConfigError, match="give what `copy_out` returned"):
            cache.copy_in(wrong)
    cache.check()


def test_digests_travel_with_the_pages():
    cache = new_cache(SCENES["int2"])
    stream = video(cache)
    image = cache.copy_out(stream)
    cache.release(stream)
    next(iter(image.branches.values())).chunks[0].records_PB[2, 3] ^= 1
    cache.copy_in(image)
    with pytest.raises(IntegrityError, match="I4"):
        cache.check()


def test_a_cache_that_checks_digests_makes_those_that_are_missing():
    cache = PagedKVCache(SCENES["int2"], "1MiB")
    copy = new_cache(SCENES["int2"]).copy_in(cache.copy_out(video(cache)))
    assert all(chunk.digests for chunk in copy.chunks())


# ---------------------------------------------------------------------- files


def without_model(image: StreamImage) -> StreamImage:
    """As it comes back from a file."""
    return image.with_chunks(lambda _, chunk: replace(chunk, ropes={}, tag=None))


def test_an_image_from_a_file_gets_ropes_and_tags_of_the_model():
    quiet, other = new_cache(SCENES["int2"]), new_cache(SCENES["int2"])
    stays = video(quiet)
    image = without_model(quiet.copy_out(stays))
    with pytest.raises(ConfigError, match=r"chunk 0 .* no rotary tables for layers \[0, 1\].*`image.with_model"):
        other.copy_in(image)
    restored = other.copy_in(image.with_model(TableRope("half", HEAD_DIM), lambda branch, index: (branch, index)))
    assert [chunk.tag for chunk in restored.chunks()] == [chunk.tag for chunk in stays.chunks()]
    assert torch.equal(forward(quiet, stays, 30, commits=True), forward(other, restored, 30, commits=True))


def test_a_restored_stream_refuses_another_rope_as_before():
    cache = new_cache(SCENES["int2"])
    image = without_model(cache.copy_out(video(cache)))
    restored = cache.copy_in(image.with_model(None, lambda branch, index: None))
    with pytest.raises(StateError, match="stored under no rope and are read under a TableRope"):
        forward(cache, restored, 30, commits=False)
