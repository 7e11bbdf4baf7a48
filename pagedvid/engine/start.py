"""From a request to a running job: what its video takes is planned when it is submitted, and taken when it starts."""

from __future__ import annotations

from pagedvid.cache.window import Window
from pagedvid.engine.job import Job, Waiting
from pagedvid.engine.latents import Latents
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.requests import VideoRequest
from pagedvid.paged_kv_cache import PagedKVCache


def plan(
    request: VideoRequest, model: VideoModel, cache: PagedKVCache, window: Window, num_denoise_steps: int
) -> Waiting:
    """The request's schedule and, from that alone, its pages. Raises what the model raises."""
    geometry = model.geometry
    condition = model.prepare(request.prompt, request.inputs, request.num_frames)
    schedule = model.schedule(condition, request.num_frames, num_denoise_steps, window)
    num_pages = cache.pages_needed(
        schedule.window,
        schedule.max_range_frames * geometry.tokens_per_frame,
        num_branches=len(geometry.branches),
        max_chunks=schedule.num_commits,
        commits=schedule.planned_commits(geometry.tokens_per_frame),
    )
    return Waiting(request, condition, schedule, num_pages)


def start(entry: Waiting, number: int, model: VideoModel, cache: PagedKVCache) -> Job:
    """Opens the stream last, so that nothing is taken when the model raises. Raises what model and cache raise."""
    request, condition, schedule, geometry = entry.request, entry.condition, entry.schedule, model.geometry
    later = schedule.rounds()
    latents = Latents(geometry, lambda chunk: model.initial_latents(condition, request.seed, chunk))
    first, following = next(later), next(later, None)
    latents.begin(first)
    decode = model.decoder(condition)
    stream = cache.open(
        schedule.window,
        schedule.max_range_frames * geometry.tokens_per_frame,
        branches=geometry.branches,
        max_chunks=schedule.num_commits,
        commits=schedule.planned_commits(geometry.tokens_per_frame),
    )
    return Job(number, request, condition, stream, schedule.first_frame, latents, decode, later, first, following)
