"""Whole numbers in public calls of the cache: NumPy's are accepted; floats and booleans are refused, and no cached
result is made for them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from pagedvid import CacheSpec, PagedKVCache, QueryRange, Window
from pagedvid.arguments import whole_number, whole_numbers
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Commit
from pagedvid.errors import CapacityError, ConfigError, PagedvidError, ShapeError

NOT_WHOLE = [30.0, True, "30", None, Fraction(30), np.float64(30), np.bool_(True), [30], 3 + 0j, float("nan")]
WHOLE = [30, np.int64(30), np.uint8(30), torch.tensor(30)]


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_what_is_no_whole_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(ShapeError, match=r"^places is .*, of type \w+; it must be a whole number such as 3$"):
        whole_number("places", value)


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_become_plain_ones(value: object) -> None:
    assert type(whole_number("places", value)) is int and whole_number("places", value) == 30
    assert whole_numbers("places", [value, value]) == (30, 30)


def test_bounds_are_named() -> None:
    with pytest.raises(ConfigError, match="places is 2; it must be at least 3"):
        whole_number("places", 2, 3, error=ConfigError)
    with pytest.raises(ShapeError, match="places is 10; it must be at most 9"):
        whole_number("places", 10, 3, 9)


@pytest.mark.parametrize("values", ["12", 12, None])
def test_a_list_is_asked_for(values: object) -> None:
    with pytest.raises(ShapeError, match=r"places is .*; it must be a tuple of whole numbers such as \(0, 3\)"):
        whole_numbers("places", values)


def cache() -> PagedKVCache:
    return PagedKVCache(CacheSpec(1, 1, 16, correction="off"), "64KiB")


def with_stream(use: Callable[[PagedKVCache, Any, Any], object]) -> Callable[[Any], object]:
    def call(value: object) -> object:
        opened = cache()
        return use(opened, opened.open(Window(1, 2), 30), value)

    return call


DOORS: dict[str, Callable[[Any], object]] = {
    "CacheSpec.num_layers": lambda n: CacheSpec(n, 1, 16),
    "CacheSpec.num_kv_heads": lambda n: CacheSpec(1, n, 16),
    "CacheSpec.head_dim": lambda n: CacheSpec(1, 1, n),
    "CacheSpec.num_query_heads": lambda n: CacheSpec(1, 1, 16, num_query_heads=n),
    "CacheSpec.page_rows": lambda n: CacheSpec(1, 1, 16, page_rows=n),
    "CacheSpec.tokens_per_frame": lambda n: CacheSpec(1, 1, 16, tokens_per_frame=n),
    "CacheSpec.frames_per_block": lambda n: CacheSpec(1, 1, 16, frames_per_block=n),
    "KVShape": lambda n: KVShape(1, 1, 16, page_rows=n),
    "Window.sink_chunks": lambda n: Window(n, 2),
    "Window.recent_chunks": lambda n: Window(1, n),
    "Commit.num_tokens": lambda n: Commit(n),
    "Commit.drops": lambda n: Commit(30, (n,)),
    "open chunk_tokens": lambda n: cache().open(Window(1, 2), n),
    "open max_chunks": lambda n: cache().open(Window(1, 2), 30, max_chunks=n),
    "pages_needed": lambda n: cache().pages_needed(Window(1, 2), n),
    "QueryRange.num_tokens": with_stream(lambda c, s, n: QueryRange(s, num_tokens=n)),
    "QueryRange.position": with_stream(lambda c, s, n: QueryRange(s, position=n)),
    "QueryRange.visible": with_stream(lambda c, s, n: QueryRange(s, visible=(n,))),
    "QueryRange.sees_ranges": with_stream(lambda c, s, n: QueryRange(s, sees_ranges=(n,))),
    "QueryRange.replaces": with_stream(lambda c, s, n: QueryRange(s, replaces=n)),
}
MAY_BE_NONE = ("num_query_heads", "page_rows", "max_chunks", "num_tokens", "position", "replaces")


@pytest.mark.parametrize("door", DOORS)
def test_every_door_takes_whole_numbers_only(door: str) -> None:
    for value in WHOLE:
        DOORS[door](value)
    for value in NOT_WHOLE:
        if value is None and door.endswith(MAY_BE_NONE) and not door.startswith(("Commit", "KVShape")):
            continue
        with pytest.raises(PagedvidError, match="whole number"):
            DOORS[door](value)


def test_calls_about_chunks_and_layers_take_whole_numbers_only() -> None:
    opened = cache()
    stream = opened.open(Window(1, 2), 30)
    qkv = torch.zeros(3, 30, 1, 16).unbind()
    for _ in range(2):
        with opened.commit([stream]) as step:
            step.attend(np.int64(0), *qkv)
    calls: list[Callable[[Any], object]] = [
        lambda n: opened.pin(stream, n),
        lambda n: opened.drop(stream, [n]),
        lambda n: opened.drop(stream, n),
        lambda n: opened.replace(stream, n),
    ]
    for call in calls:
        for value in (1.0, True, "1", None):
            with pytest.raises(ShapeError, match="whole number"):
                call(value)
    with opened.denoise([stream]) as step, pytest.raises(ShapeError, match=r"layer is 0\.0"):
        step.attend(0.0, *qkv)  # type: ignore[arg-type]
    opened.check()
    opened.pin(stream, np.int32(1))
    assert stream.history("cond").pinned == {1} and type(next(iter(stream.history("cond").pinned))) is int


def test_a_float_that_is_refused_poisons_no_other_cache() -> None:
    """30.0 and 30 are the same key of a dictionary, so a result computed for one used to be returned for the other."""
    first, second = cache(), cache()
    with pytest.raises(ShapeError):
        first.open(Window(1, 2), 30.0)  # type: ignore[arg-type]
    stream = second.open(Window(1, 2), 30)
    with second.commit([stream]) as step:
        step.attend(0, *torch.zeros(3, 30, 1, 16).unbind())
    assert first.pool.num_used_pages == 0 and first.reserved_pages == 0
    first.check()
    second.check()


def test_cached_functions_tell_types_apart() -> None:
    shape, codecs = KVShape(1, 1, 16), StreamCodecs().steady
    assert shape.table_pages(31.0, codecs) == (1.0, 1.0)  # type: ignore[arg-type]
    assert all(type(pages) is int for pages in shape.table_pages(31, codecs))


def test_absurd_windows_are_planned_at_once() -> None:
    """As many pages as the window has chunks, and one more for the chunk that is committed."""
    shape, codecs = KVShape(1, 1, 16), StreamCodecs("int2", newest="bf16")
    window = Window(10**9, 10**400)
    chunk, newest = (shape.chunk_pages(30, StreamCodecs(name).steady) for name in ("int2", "bf16"))
    assert peak_pages(shape, window, codecs, 30) == (10**9 + 10**400) * chunk + 2 * newest
    with pytest.raises(CapacityError, match=r"needs \d+ \.\.\. \d+ pages"):
        cache().open(window, 30)
