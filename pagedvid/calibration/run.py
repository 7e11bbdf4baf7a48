"""Generates a model's videos to learn about the model, and keeps what was learned when it is interrupted.

observe    all videos, a few at a time  -> means, and tables of klt codecs     observe.py, fit.py
profile    some of them, one by one     -> error curves of every head          profile.py, curves.py
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.budgets.profile import with_profile
from pagedvid.calibration.observe import ObservingCache
from pagedvid.calibration.partial_file import PartialFile
from pagedvid.calibration.profile import ProfilingCache, profile_from
from pagedvid.calibration.sensitivity import SensedModel
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.tables_file import Calibration
from pagedvid.config.sections import Config, frame_settings
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.errors import ConfigError, PagedvidError
from pagedvid.models.build import build_engine, resolve
from pagedvid.paged_kv_cache import PagedKVCache

logger = logging.getLogger(__name__)

TOGETHER_VIDEOS = 8
"""Videos that are observed before what was observed so far is written to the partial file."""
MEASURED = ("keys", "values", "windows", "sensed")


class Listener(Protocol):
    """What is called as a run goes on."""

    def start(self, requests: Sequence[VideoRequest], frames_per_chunk: int, num_measured: int) -> None:
        """The run begins. An interrupted run has measured the first `num_measured` of these videos already."""
        ...

    def chunk_done(self, engine: Engine) -> None:
        """A chunk of a video is finished."""
        ...

    def video_ended(self, request: VideoRequest, error: Exception | None) -> None:
        """A video is finished, or has failed."""
        ...


@dataclass(frozen=True)
class CalibrationRun:
    """Videos of a model that are generated to be measured; their frames are discarded."""

    config: Config
    """With a cache in bf16."""
    requests: Sequence[VideoRequest]
    out: Path
    """The file of the result. The partial files are next to it."""
    listener: Listener

    def observe(self) -> tuple[ObservingCache, str]:
        """A cache that has observed all videos, and a text that says how many videos and chunks it observed."""
        kept = self._kept("observed", self.requests)
        engine = self._engine(ObservingCache)
        cache = engine.cache
        assert isinstance(cache, ObservingCache)
        tensors, num_seen = kept.load()
        made = [int(number) for number in tensors.pop("made", torch.zeros(2, dtype=torch.int64))]
        if num_seen:
            cache.restore(tensors)
        self._start(engine, self.requests, num_seen)
        try:
            for first in range(num_seen, len(self.requests), TOGETHER_VIDEOS):
                cache.begin(seed=first)
                some = self.requests[first : first + TOGETHER_VIDEOS]
                videos, chunks = self._generate(engine, some)
                made = [made[0] + len(videos), made[1] + chunks]
                if cache.statistics[0].keys.num_blocks:
                    _keep(kept, {**cache.state(), "made": torch.tensor(made, dtype=torch.int64)}, first + len(some))
        finally:
            engine.close()
        return cache, f"{made[0]} videos, {made[1]} chunks"

    def with_means(self) -> Calibration:
        """What the codecs of the int ladder need, without tables of klt codecs. Raises ConfigError."""
        cache, made = self.observe()
        if not cache.statistics[0].is_complete:
            raise ConfigError("no chunk was observed; see why the videos failed")
        keys, values = (
            torch.stack([moments.mean_HD() for moments in kind])
            for kind in zip(*((layer.keys, layer.values) for layer in cache.statistics), strict=True)
        )
        layout = BlockLayout(cache.spec.tokens_per_frame, cache.spec.frames_per_block)
        return Calibration.of_means(self.config.model.name, layout, keys, values, made)

    def with_tables(self) -> Calibration:
        """Tables of klt codecs. Raises ConfigError when no chunk was read by a later one."""
        cache, made = self.observe()
        return cache.calibration(self.config.model.name, made)

    def profiled(self, calibration: Calibration, num_videos: int) -> Calibration:
        """The calibration with a profile, measured on the first `num_videos` videos. Raises ConfigError if none of
        them could be measured."""
        requests = self.requests[:num_videos]
        kept = self._kept("profiled", requests)
        engine = self._engine(partial(ProfilingCache, calibration=calibration))
        cache = engine.cache
        assert isinstance(cache, ProfilingCache)
        engine.model = SensedModel(engine.model, cache)
        tensors, num_seen = kept.load()
        made = [int(number) for number in tensors.get("made", ())]
        curves: list[tuple[Tensor, ...]] = list(zip(*(tensors[name] for name in MEASURED if made), strict=True))
        self._start(engine, requests, num_seen)
        try:
            for number in range(num_seen, len(requests)):
                cache.begin(seed=number)
                if self._generate(engine, [requests[number]])[0]:
                    curves.append(cache.curves())
                    made.append(number)
                    stacked = dict(zip(MEASURED, map(torch.stack, zip(*curves, strict=True)), strict=True))
                    _keep(kept, {**stacked, "made": torch.tensor(made, dtype=torch.int64)}, number + 1)
        finally:
            engine.close()
        if not made:
            raise ConfigError("no video could be profiled; see why they failed")
        prompts = [requests[number].prompt for number in made]
        profile = profile_from(cache, engine.window, prompts, curves, engine.model.geometry.chunk_tokens)
        return with_profile(calibration, profile)

    def forget(self) -> None:
        """Deletes the partial files; to be called when the result has been written."""
        for phase in ("observed", "profiled"):
            self._kept(phase, self.requests).remove()

    def _start(self, engine: Engine, requests: Sequence[VideoRequest], num_measured: int) -> None:
        self.listener.start(requests, engine.model.geometry.frames_per_chunk, num_measured)

    def _kept(self, phase: str, requests: Sequence[VideoRequest]) -> PartialFile:
        described = [(request.prompt, request.num_frames, request.seed) for request in requests]
        return PartialFile(
            self.out.with_name(f".{self.out.name}.{phase}"), f"{frame_settings(self.config)} {described}"
        )

    def _engine(self, cache_type: Callable[..., PagedKVCache]) -> Engine:
        return build_engine(resolve(self.config), [request.prompt for request in self.requests], cache_type)

    def _generate(self, engine: Engine, requests: Sequence[VideoRequest]) -> tuple[list[VideoRequest], int]:
        """Generates some videos at once; returns those that did not fail, and the number of chunks."""
        by_id = {request.id: request for request in requests}
        for request in requests:
            try:
                engine.submit(request)
            except PagedvidError as error:
                self.listener.video_ended(request, error)
        made, num_chunks = [], 0
        for output in engine.run():
            request = by_id[output.request_id]
            if not isinstance(output, ChunkOutput):
                self.listener.video_ended(request, output.error)
                continue
            num_chunks += 1
            self.listener.chunk_done(engine)
            if output.is_last:
                made.append(request)
                self.listener.video_ended(request, None)
        return made, num_chunks


def _keep(kept: PartialFile, tensors: Mapping[str, Tensor], num_videos: int) -> None:
    """Keeps what was measured so far; the run goes on if that fails, because its result may still be written."""
    try:
        kept.save(tensors, num_videos)
    except ConfigError as error:
        logger.warning("an interrupted run could not go on from here: %s", error)
