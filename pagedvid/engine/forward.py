"""One round of several jobs: packed into one forward, whose predictions advance their chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.engine.job import Job
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.requests import ChunkOutput
from pagedvid.errors import NonFiniteError
from pagedvid.paged_kv_cache import PagedKVCache


def packed_forward(model: VideoModel, cache: PagedKVCache, jobs: Sequence[Job]) -> tuple[list[list[Tensor]], float]:
    """One forward of all ranges of all jobs' rounds: each job's predictions by range, [T, C] each, and the seconds that
    it took.

    Raises what the model and the cache raise; nothing is stored in that case.
    """
    tokens_per_frame = model.geometry.tokens_per_frame
    ranges = [part for job in jobs for part in job.round.ranges]
    conditions = [job.condition for job in jobs for _ in job.round.ranges]
    queries: list[QueryRange] = []
    for job in jobs:
        queries += query_ranges(job, tokens_per_frame, len(queries))
    packed = torch.cat([job.latents.of(part.frames) for job in jobs for part in job.round.ranges])
    with cache.step(queries) as step:
        started = time.perf_counter()
        prediction = model.forward(packed, ranges, conditions, partial(step.attend, rope=model.rope))
        seconds = time.perf_counter() - started
        parts = iter(prediction.split([len(part.frames) * tokens_per_frame for part in ranges]))
    return [[next(parts) for _ in job.round.ranges] for job in jobs], seconds


def committed_latents(job: Job) -> list[tuple[int, Tensor]]:
    """What the job's round stores, by order of commit, [T, C] each; known before the forward."""
    stream = job.open_stream()
    parts = {stream.history(part.branch).num_committed: part for part in job.round.ranges if part.commits}
    return [(index, job.latents.of(part.frames)) for index, part in parts.items()]


def advance_chunks(model: VideoModel, job: Job, predictions: Sequence[Tensor]) -> None:
    """Advances the chunks of the job's round by its predictions, [T, C] for each range, and those held from earlier
    rounds. Raises what the model's sampler raises."""
    ranges, chunks = job.round.ranges, job.latents.chunks
    for move in job.round.advances:
        by_role = job.held.pop(move.chunk, {}) | {ranges[i].role: predictions[i] for i in move.ranges}
        chunks[move.chunk] = model.advance(chunks[move.chunk], by_role, move.noise_level, move.next_noise_level)
    for hold in job.round.holds:
        job.held.setdefault(hold.chunk, {})[ranges[hold.range].role] = predictions[hold.range]


def finished_chunk(model: VideoModel, job: Job, chunk: int, now: float) -> ChunkOutput:
    """The decoded frames of a clean chunk that are not out yet, without given frames and those beyond the video's end.

    Only latent frames that are output are decoded. `now`: when its viewer gets them. Raises NonFiniteError.
    """
    latents = job.latents.chunks[chunk]
    if not bool(torch.isfinite(latents).all()):
        raise NonFiniteError(f"chunk {chunk} of {job.request.id!r} has NaN or infinite latents after denoising")
    geometry = model.geometry
    first = job.schedule.first_frame + job.num_frames_out - chunk * geometry.frames_per_chunk
    num_frames = min(geometry.frames_per_chunk - first, job.request.num_frames - job.num_frames_out)
    frames = job.decode(latents[first * geometry.tokens_per_frame : (first + num_frames) * geometry.tokens_per_frame])
    job.num_frames_out += num_frames
    job.num_output_frames += len(frames)
    if job.playout is not None:
        job.playout.deliver(len(frames), now)
    is_last = job.num_frames_out == job.request.num_frames
    return ChunkOutput(job.request.id, chunk, frames, is_last, *job.peak_bytes)


def query_ranges(job: Job, tokens_per_frame: int, first: int) -> list[QueryRange]:
    """The job's next round as the cache takes it, after `first` ranges of other jobs."""
    return [
        QueryRange(
            job.open_stream(),
            part.branch,
            len(part.frames) * tokens_per_frame,
            commit=part.commits,
            visible=part.visible,
            sees_ranges=tuple(first + other for other in part.sees),
            position=None if part.position is None else part.position * tokens_per_frame,
            tag=part.tag,
        )
        for part in job.round.ranges
    ]
