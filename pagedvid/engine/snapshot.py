"""A video between two steps as plain data: what an engine with the same model and cache needs to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from pagedvid.cache.stream_image import StreamImage
from pagedvid.engine.job import Job
from pagedvid.engine.requests import VideoRequest


@dataclass(frozen=True, eq=False)
class JobSnapshot:
    """Axes: T tokens of a chunk in (frame, row, column) order, C latent channels."""

    request: VideoRequest
    """As it stands now: with the present prompt, seed and number of frames."""
    num_rounds_done: int
    num_frames_out: int
    """Latent frames that were decoded."""
    num_output_frames: int
    """Frames that were given out."""
    latents: dict[int, Tensor]
    """[T, C] by chunk: those in flight, and finished ones that a later round still carries."""
    clean: dict[int, Tensor]
    """[T, C] of the committed chunks that are kept, by order of commit; for storing them again."""
    held: dict[int, dict[str, Tensor]]
    """Predictions of earlier rounds by chunk and role that a later round uses."""
    decoder: dict[str, Tensor]
    """State of the video's decoder; empty for one without."""
    peak_bytes: tuple[int, int]
    """(Most bytes that its stream held, bytes of the same tokens as dense BF16.)"""
    image: StreamImage | None
    """Its stream; None: it has not begun."""


def progress_of(job: Job) -> JobSnapshot:
    """Where a job is, without its stream. It shares the job's tensors, which are never changed in place."""
    return JobSnapshot(
        request=job.request,
        num_rounds_done=job.num_rounds_done,
        num_frames_out=job.num_frames_out,
        num_output_frames=job.num_output_frames,
        latents=dict(job.latents.chunks),
        clean=dict(job.clean),
        held={chunk: dict(predictions) for chunk, predictions in job.held.items()},
        decoder=job.decode.state(),
        peak_bytes=job.peak_bytes,
        image=None,
    )


def take_up(job: Job, snapshot: JobSnapshot, device: torch.device) -> None:
    """Gives a new job the progress of a snapshot, without its stream. Tensors are copied to the device."""
    job.num_rounds_done = snapshot.num_rounds_done
    job.num_frames_out, job.num_output_frames = snapshot.num_frames_out, snapshot.num_output_frames
    job.latents.chunks.update(_moved(snapshot.latents, device))
    job.clean.update(_moved(snapshot.clean, device))
    job.held.update({chunk: _moved(predictions, device) for chunk, predictions in snapshot.held.items()})
    job.peak_bytes = snapshot.peak_bytes
    if snapshot.decoder:  # there is none of a video that has not begun
        job.decode.restore(snapshot.decoder)
    job.follow(job.schedule)


def on_host(snapshot: JobSnapshot, image: StreamImage | None) -> JobSnapshot:
    """The snapshot with all tensors in host memory, and the stream's image."""
    host = torch.device("cpu")
    return replace(
        snapshot,
        latents=_moved(snapshot.latents, host),
        clean=_moved(snapshot.clean, host),
        held={chunk: _moved(predictions, host) for chunk, predictions in snapshot.held.items()},
        decoder=_moved(snapshot.decoder, host),
        image=image,
    )


Key = TypeVar("Key")


def _moved(tensors: Mapping[Key, Tensor], device: torch.device) -> dict[Key, Tensor]:
    return {key: tensor.to(device) for key, tensor in tensors.items()}
