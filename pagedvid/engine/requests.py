"""What goes into the engine and what comes out of it. Plain data: no tensors of the cache, no page ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pagedvid.arguments import instance_of, list_of, whole_number
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

MOST_LIVE_SPEED = 1000
"""Frames per second; more than any screen shows."""


@dataclass(frozen=True)
class LaterPrompt:
    """A prompt that takes over on the way: from the first chunk that begins at or after a frame."""

    first_frame: int
    """Latent frame of the video, at least 1."""
    prompt: str
    recache: bool = False
    """Whether the chunks that are kept then are stored again under it; see `Engine.prompt`."""

    def __post_init__(self) -> None:
        frame = whole_number("first_frame of a later prompt", self.first_frame, 1, error=ConfigError)
        object.__setattr__(self, "first_frame", frame)
        instance_of(str, "prompt of a later prompt", self.prompt, "text such as 'a blue circle'", ConfigError)
        instance_of(bool, "recache of a later prompt", self.recache, "True or False", ConfigError)


@dataclass(frozen=True)
class EarlierPrompt:
    """A prompt that the video had before, until another one took over at a chunk boundary."""

    until_frame: int
    """Latent frame of the video with which the chunk begins, at least 1."""
    prompt: str

    def __post_init__(self) -> None:
        frame = whole_number("until_frame of an earlier prompt", self.until_frame, 1, error=ConfigError)
        object.__setattr__(self, "until_frame", frame)
        instance_of(str, "prompt of an earlier prompt", self.prompt, "text such as 'left 12'", ConfigError)


@dataclass(frozen=True)
class VideoRequest:
    """One video to generate. `num_frames` is rounded up to whole chunks by the engine; surplus frames are cut off."""

    id: str
    """Free again as soon as the request has finished, failed or been cancelled."""
    prompt: str
    num_frames: int
    seed: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the model takes in addition to the prompt, by name; see the model's `prepare`."""
    priority: int = 0
    """The policy `priority` runs higher ones first."""
    live_frames_per_second: float | None = None
    """Speed at which a viewer plays the video while it is made; None: nobody waits for it."""
    keep: bool = False
    """Whether the video keeps its pages after its last frame, so that it can be forked and extended, until it is
    cancelled."""
    later_prompts: tuple[LaterPrompt, ...] = ()
    """Those to come, by ascending frame; each takes over at its chunk boundary whatever else runs. Where one cannot,
    the video fails."""
    earlier_prompts: tuple[EarlierPrompt, ...] = ()
    """Those that showed before `prompt`, by ascending frame; for models that go on where they led
    (`protocol.Steerable`)."""

    def __post_init__(self) -> None:
        instance_of(str, "id of a request", self.id, "text such as 'a'", ConfigError)
        instance_of(str, "prompt of a request", self.prompt, "text such as 'a red circle'", ConfigError)
        for name, minimum in (("num_frames", 1), ("seed", None), ("priority", None)):
            number = whole_number(
                f"{name} of request {shown(self.id)}", getattr(self, name), minimum, error=ConfigError
            )
            object.__setattr__(self, name, number)
        instance_of(bool, f"keep of request {shown(self.id)}", self.keep, "True or False", ConfigError)
        speed = self.live_frames_per_second
        is_speed = isinstance(speed, (int, float)) and not isinstance(speed, bool) and 0 < speed <= MOST_LIVE_SPEED
        if speed is not None and not is_speed:
            raise ConfigError(
                f"live_frames_per_second of request {shown(self.id)} is {shown(speed)}; give a number above 0 and at "
                f"most {MOST_LIVE_SPEED}, or None for a video that nobody watches while it is made"
            )
        self._check_later_prompts()
        self._check_earlier_prompts()

    def _check_later_prompts(self) -> None:
        what, example = f"later_prompts of request {shown(self.id)}", "[LaterPrompt(24, 'a blue circle')]"
        later = tuple(list_of(LaterPrompt, what, self.later_prompts, example, ConfigError))
        object.__setattr__(self, "later_prompts", later)
        frames = [it.first_frame for it in later]
        if frames != sorted(set(frames)) or any(frame >= self.num_frames for frame in frames):
            raise ConfigError(
                f"{what} begin at the frames {frames}; they must ascend and be below the video's {self.num_frames}"
            )

    def _check_earlier_prompts(self) -> None:
        what, example = f"earlier_prompts of request {shown(self.id)}", "[EarlierPrompt(24, 'left 12')]"
        earlier = tuple(list_of(EarlierPrompt, what, self.earlier_prompts, example, ConfigError))
        object.__setattr__(self, "earlier_prompts", earlier)
        frames = [it.until_frame for it in earlier]
        if frames != sorted(set(frames)):
            raise ConfigError(f"{what} end at the frames {frames}; they must ascend")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The present prompt, and those to come."""
        return self.prompt, *(it.prompt for it in self.later_prompts)

    @property
    def recaches(self) -> bool:
        """Whether chunks are going to be stored again, for which both copies must fit into the pool for a moment."""
        return any(it.recache for it in self.later_prompts)

    def steered(self, prompt: str, frame: int) -> VideoRequest:
        """The request once `prompt` has taken over at latent frame `frame`, with the prompts of earlier frames in
        `earlier_prompts`. A prompt that was to begin at `frame` or later never showed and is dropped."""
        earlier = self.earlier_prompts
        ended = tuple(it for it in earlier if it.until_frame < frame)
        before = self.prompt if ended == earlier else earlier[len(ended)].prompt
        if frame > 0 and prompt != before:
            ended += (EarlierPrompt(frame, before),)
        return replace(self, prompt=prompt, earlier_prompts=ended)


@dataclass(frozen=True)
class Continuation:
    """A video that goes on from another one's history; see `Engine.fork`. What is None is as in the source; with a
    prompt of its own it has none of the source's later prompts."""

    id: str
    prompt: str | None = None
    seed: int | None = None
    num_frames: int | None = None
    """Of the whole video, shared frames included."""

    def request_after(self, source: VideoRequest) -> VideoRequest:
        """Its request: what it does not say is as in its source. Raises ConfigError for values of the wrong kind."""
        given = {name: getattr(self, name) for name in ("prompt", "seed", "num_frames")}
        if self.prompt is not None:
            source = replace(source, later_prompts=())
        return replace(source, id=self.id, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class ChunkOutput:
    """The clean frames of one finished chunk: uint8 [frames, height, width, 3], or float32 latents as `decode` says."""

    request_id: str
    chunk_index: int
    frames: np.ndarray
    is_last: bool
    stored_bytes: int
    """The most that the video's stream has held between two steps so far."""
    bf16_bytes: int
    """The same tokens as dense BF16."""


@dataclass(frozen=True)
class RequestFailure:
    """A request that ended without its video; the others go on."""

    request_id: str
    error: Exception
    """What was raised, fit to be shown and kept (engine/failures.py)."""


@dataclass(frozen=True)
class PromptRefused:
    """A prompt that was accepted could not be put into effect at the chunk boundary; the video goes on without it."""

    request_id: str
    prompt: str
    recache: bool
    error: Exception


EngineOutput = ChunkOutput | RequestFailure | PromptRefused


@dataclass(frozen=True)
class VideoStatus:
    """Where one video of an engine is; reading it changes nothing."""

    id: str
    state: str
    """One of `states.STATES`."""
    prompt: str
    num_frames: int
    """Latent frames."""
    num_frames_out: int
    """Latent frames of it that are out."""
    num_output_frames: int
    """Frames that were given out: several of each latent frame where a VAE makes them."""
    is_live: bool
    credit_seconds: float | None
    """How long its viewer can play on with what was delivered; negative: stalled. None where nobody watches."""
    own_pages: int
    """Pages in the pool that no other stream holds."""
    shared_pages: int
    """Pages in the pool that other streams hold, too."""
    host_bytes: int
    """Bytes of its pages while it is swapped out."""
    source_id: str | None = None
    """Of a fork that is not made yet: the video that makes it, at its next chunk boundary."""


@dataclass(frozen=True)
class EngineStats:
    """Counters of the engine; reading them changes nothing."""

    num_waiting: int
    num_running: int
    num_finished: int
    num_failed: int
    num_chunks_done: int
    num_forks: int
    """Videos that began with the history of another one."""
    num_steps: int
    forward_seconds: float
    """Time inside the model's forward, attention and page encoding included."""
    step_seconds: float
    """Time of whole steps; the difference is bookkeeping, sampling and decoding."""
    num_swaps_out: int
    """Streams that were copied to host memory because the pool had no room for all, forks that begin there included."""
    num_swaps_in: int
    """Streams that came into the pool from there. Forks of a stream in host memory begin there without a copy."""
    swapped_out_bytes: int
    """Pages and small tensors that were copied in all swaps of this direction together."""
    swapped_in_bytes: int
