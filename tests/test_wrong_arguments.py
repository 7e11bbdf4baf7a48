"""Arguments of every wrong kind at every public call: it works, or an error of pagedvid says what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pagedvid import CacheSpec, GridRotary, PagedKVCache, QueryRange, StreamCodecs, Window
from pagedvid.cache.host_memory import HostMemory
from pagedvid.cache.window import Commit
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import PagedvidError
from pagedvid.integrations.dense_view import DenseWindow
from pagedvid.rotary.grid_rotary import theta_frequencies
from tests.engine.toy_model import toy_engine

WRONG: list[Any] = [
    *(None, 0, -1, 2.5, True, "x", "", b"x", [], [1], (1, 2), {}, {"a": 1}, {1}, object(), int, lambda: 0, range(3)),
    *(float("nan"), float("inf"), 10**30, np.int64(3), np.zeros(3), torch.zeros(3), StreamCodecs(), Window(1, 2)),
]
Call = Callable[[Any], object]


def fields(make: Callable[..., object], right: dict[str, Any], *names: str) -> dict[str, Call]:
    """A call for each of the names, with the value in its place."""
    return {f"{make.__name__}({name})": lambda x, name=name: make(**{**right, name: x}) for name in names}


def cache() -> PagedKVCache:
    return PagedKVCache(CacheSpec(1, 1, 16), "64KiB")


def with_stream(use: Callable[[PagedKVCache, Any, Any], object]) -> Call:
    def call(x: Any) -> object:
        opened = cache()
        return use(opened, opened.open(Window(1, 2), 8), x)

    return call


def entered(context: Any) -> None:
    with context:
        pass


def attend(opened: PagedKVCache, ranges: Any, place: int | None = None, x: Any = None, **more: Any) -> None:
    given: list[Any] = [0, *torch.zeros(3, 8, 1, 16), None]
    if place is not None:
        given[place] = x
    with opened.step(ranges) as step:
        step.attend(*given, **more)


def updated(opened: PagedKVCache, stream: Any, place: int, x: Any) -> None:
    given: list[Any] = [0, *torch.zeros(2, 8, 1, 16), 0, torch.zeros(8, 1, 16)]
    given[place] = x
    DenseWindow(opened, stream).update_and_get(*given)


ROTARY = {"frequencies": (torch.ones(2),) * 3, "axis_positions": (torch.ones(2),) * 2, "layout": "half"}
USUAL = {"channels": (4, 2, 2), "rows": 3, "columns": 5, "layout": "half"}
SHAPE = {"num_layers": 1, "num_kv_heads": 1, "head_dim": 16}
STREAM = {"window": Window(1, 2), "chunk_tokens": 8}
CALLS: dict[str, Call] = {
    **fields(CacheSpec, SHAPE, *SHAPE, "num_query_heads", "codecs", "page_rows", "tokens_per_frame"),
    **fields(CacheSpec, SHAPE, "frames_per_block", "correction", "keys_arrive", "debug_checks"),
    **fields(StreamCodecs, {}, "history", "sink", "newest", "layers"),
    **fields(Window, {}, "sink_chunks", "recent_chunks", "positions"),
    **fields(Commit, {"num_tokens": 3}, "num_tokens", "drops"),
    **fields(GridRotary, ROTARY, *ROTARY, "head_dim", "whole_frames", "num_cached"),
    **fields(GridRotary.from_theta, USUAL, *USUAL, "theta", "dtype", "whole_frames"),
    **fields(GridRotary.of_sequence, {"frequencies": torch.ones(2), "layout": "half"}, "frequencies", "layout"),
    **fields(theta_frequencies, {"num_channels": 8}, "num_channels", "theta", "dtype"),
    **fields(toy_engine, {}, "max_batch_tokens", "policy", "max_concurrent", "num_denoise_steps"),
    **fields(VideoRequest, {"id": "a", "prompt": "red", "num_frames": 8}, "id", "prompt", "num_frames", "seed"),
    **fields(PagedKVCache, {"spec": CacheSpec(**SHAPE), "memory": "64KiB"}, "spec", "memory", "device", "backend"),
    **fields(PagedKVCache, {"spec": CacheSpec(**SHAPE), "memory": "64KiB"}, "scratch", "book", "tables"),
    **{f"open({n})": lambda x, n=n: cache().open(**{**STREAM, n: x}) for n in (*STREAM, "branches", "max_chunks")},
    **{f"open({n})": lambda x, n=n: cache().open(**{**STREAM, n: x}) for n in ("codecs", "commits")},
    **{
        f"pages_needed({n})": lambda x, n=n: cache().pages_needed(**{**STREAM, n: x}) for n in ("num_branches", *STREAM)
    },
    **{f"{n}(stream)": lambda x, n=n: getattr(cache(), n)(x) for n in ("fork", "release", "fits", "check_codecs")},
    **{f"{n}(stream)": lambda x, n=n: getattr(cache(), n)(x) for n in ("copy_out", "extend", "own_and_shared_pages")},
    **{f"{n}(image)": lambda x, n=n: getattr(cache(), n)(x) for n in ("copy_in", "image_pages")},
    **{f"extend({n})": with_stream(lambda c, s, x, n=n: c.extend(s, **{n: x})) for n in ("max_chunks", "commits")},
    **fields(HostMemory, {}, "num_bytes"),
    **{f"{n}(ranges)": lambda x, n=n: entered(getattr(cache(), n)(x)) for n in ("denoise", "commit", "step")},
    **{
        f"{n}(chunk)": with_stream(lambda c, s, x, n=n: getattr(c, n)(s, x))
        for n in ("pin", "unpin", "drop", "replace")
    },
    **{f"{n}(branch)": with_stream(lambda c, s, x, n=n: getattr(c, n)(s, 0, x)) for n in ("pin", "unpin", "replace")},
    **{
        f"QueryRange({n})": with_stream(lambda c, s, x, n=n: attend(c, [QueryRange(**{"stream": s, n: x})]))
        for n in ("stream", "branch", "num_tokens", "commit", "visible", "sees_ranges", "position", "replaces", "tag")
    },
    **{
        f"attend({n})": with_stream(lambda c, s, x, i=i: attend(c, [s], i, x))
        for i, n in enumerate(("layer", "q", "k", "v", "rope"))
    },
    "attend(projections)": with_stream(lambda c, s, x: attend(c, [s], projections=x)),
    "attend(projection)": with_stream(lambda c, s, x: attend(c, [s], projections=[x])),
    "attend(context)": with_stream(lambda c, s, x: attend(c, [s], context=x)),
    "attend(context of a range)": with_stream(lambda c, s, x: attend(c, [s], context=[x])),
    "attend(keys of a context)": with_stream(lambda c, s, x: attend(c, [s], context=[(x, x)])),
    "DenseWindow(cache)": with_stream(lambda c, s, x: DenseWindow(x, s)),
    "DenseWindow(stream)": with_stream(lambda c, s, x: DenseWindow(c, x)),
    **{
        f"DenseWindow({n})": with_stream(lambda c, s, x, n=n: DenseWindow(c, s, **{n: x}))
        for n in ("rope", "dtype", "branch")
    },
    **{
        f"update_and_get({n})": with_stream(lambda c, s, x, i=i: updated(c, s, i, x))
        for i, n in enumerate(("layer", "k", "v", "chunk_start", "q"))
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_only_errors_that_say_what_to_give(name: str) -> None:
    for value in WRONG:
        try:
            CALLS[name](value)
        except PagedvidError as error:
            assert len(str(error)) < 600
