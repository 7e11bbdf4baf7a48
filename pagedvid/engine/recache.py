"""Storing the kept chunks again under another prompt, as LongLive (arXiv 2509.22622) and Krea's realtime model do.

Otherwise the keys and values of the past go on speaking of the old prompt, and the new one takes effect slowly or not
at all. Chunk by chunk, oldest first, each sees those before it as they are now.
"""

from __future__ import annotations

from functools import partial

import torch

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream import Stream
from pagedvid.engine.job import Job, commit_ranges
from pagedvid.engine.planning import Plan
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.schedule import Range
from pagedvid.errors import StateError
from pagedvid.paged_kv_cache import PagedKVCache


def recached(model: VideoModel, cache: PagedKVCache, job: Job, plan: Plan) -> Stream:
    """A stream with the same chunks as the job's, stored under the plan's condition; the job's own is unchanged.

    Both exist together until the caller releases one. Raises CapacityError when they do not fit together, StateError
    for chunks that were stored together with others or whose latents are not kept, and what the model raises; the new
    stream is gone then.
    """
    stream = job.open_stream()
    kept = sorted({chunk.index for chunk in stream.chunks()})
    ranges = commit_ranges(plan.schedule, job.num_rounds_done)
    _check_alone(job, kept, ranges)
    twin = cache.fork(stream)
    try:
        for index in kept:
            _store_again(model, cache, twin, index, ranges[index], job, plan)
    except BaseException:
        cache.release(twin)
        raise
    return twin


def _check_alone(job: Job, kept: list[int], ranges: dict[int, list[Range]]) -> None:
    missing = [index for index in kept if index not in job.clean]
    together = [index for index in kept if any(part.sees for part in ranges[index])]
    if missing or together:
        raise StateError(
            f"chunks {missing or together} of video {job.request.id!r} cannot be stored again: "
            + ("their latents are not kept" if missing else "they were stored in a pass over several chunks")
            + "; change the prompt without recache"
        )


def _store_again(
    model: VideoModel, cache: PagedKVCache, twin: Stream, index: int, ranges: list[Range], job: Job, plan: Plan
) -> None:
    tokens_per_frame, queries = model.geometry.tokens_per_frame, []
    for part in ranges:
        live = twin.history(part.branch).chunks
        visible = tuple(seen for seen in (live if part.visible is None else part.visible) if seen in live)
        num_tokens = len(part.frames) * tokens_per_frame
        queries.append(
            QueryRange(twin, part.branch, num_tokens, commit=True, visible=visible, tag=part.tag, replaces=index)
        )
    packed = torch.cat([job.clean[index]] * len(ranges))
    with cache.step(queries) as step:
        model.forward(packed, ranges, [plan.condition] * len(ranges), partial(step.attend, rope=model.rope))
