"""The token rate of this machine with a model, from a short run of the engine; for models whose weights come with
pagedvid."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pagedvid.capacity.look_back import SlidingLookBack
from pagedvid.capacity.sizing import Question
from pagedvid.capacity.sustain import TokenRate, work
from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import EngineStats, VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.models.build import build_engine, resolve

NUM_VIDEOS = 4
"""Videos that run together."""
MEASURED_CHUNKS = 2
"""Chunks of each video that are measured, after as many as fill its window."""
MOST_CHUNKS = 16
"""Chunks of a window that is filled; a longer one would keep the machine busy for minutes."""
PROMPT = "a red circle moves right"


def measured_rate(
    question: Question, device: str = "cpu", progress: Callable[[int, int], None] = lambda done, total: None
) -> TokenRate:
    """Runs some videos of the question's model with the question's window until it is full, and times what follows,
    sampling and decoding included. Denoise steps and commit passes get one rate.

    `progress` gets (chunks done, all chunks). Raises ConfigError for a model that cannot run here without more.
    """
    num_filling = _window_chunks(question)
    engine = _engine(question, device)
    chunk_frames, num_chunks = engine.model.geometry.frames_per_chunk, num_filling + MEASURED_CHUNKS
    for number in range(NUM_VIDEOS):
        engine.submit(VideoRequest(str(number), PROMPT, (num_chunks + 1) * chunk_frames, seed=number))

    def run_until(num_done: int) -> EngineStats:
        while engine.stats().num_chunks_done < NUM_VIDEOS * num_done:
            engine.step()
            progress(engine.stats().num_chunks_done, NUM_VIDEOS * num_chunks)
        return engine.stats()

    before, after = run_until(num_filling), run_until(num_chunks)
    engine.close()
    cost = work(question)
    num_frames = (after.num_chunks_done - before.num_chunks_done) * chunk_frames
    rate = num_frames * (cost.denoise_tokens + cost.commit_tokens) / (after.step_seconds - before.step_seconds)
    where = f"this CPU (threads: {torch.get_num_threads()})" if device == "cpu" else device
    return TokenRate(rate, rate, f"measured here with {NUM_VIDEOS} streams on {where}")


def _window_chunks(question: Question) -> int:
    """Chunks after which the window is full. Raises ConfigError when that would take too long."""
    num_chunks = question.size.window.max_chunks
    if num_chunks > MOST_CHUNKS:
        raise _not_here(question, f"a window of {num_chunks} chunks would take too long; the most is {MOST_CHUNKS}")
    return num_chunks


def _engine(question: Question, device: str) -> Engine:
    """The question's model with default settings but for the window. Raises ConfigError."""
    card, look_back = question.card, question.look_back
    cache = CacheConfig()
    if isinstance(look_back, SlidingLookBack):
        cache = CacheConfig(sink_chunks=look_back.sink_chunks, recent_chunks=look_back.recent_chunks)
    try:
        engine = build_engine(resolve(Config(model=ModelConfig(name=card.name, device=device), cache=cache)))
    except ConfigError as error:
        raise _not_here(question, str(error)) from error
    geometry = engine.model.geometry
    here = (geometry.num_layers, geometry.tokens_per_frame, len(geometry.branches))
    asked = (card.num_layers, card.tokens_per_frame(question.resolution), question.size.num_branches)
    if here != asked:
        raise _not_here(
            question, f"it has {here} layers, tokens of a frame and branches; the question asks for {asked}"
        )
    return engine


def _not_here(question: Question, reason: str) -> ConfigError:
    return ConfigError(
        f"{question.card.name} cannot be measured here ({reason}); give --tokens-per-second, as measured elsewhere"
    )
