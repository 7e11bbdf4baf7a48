"""The recorded rollouts again, through the engine and the paged cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.worldplay.camera import Cameras
from pagedvid.models.worldplay.pipeline import WorldPlayModel
from pagedvid.models.worldplay.pipeline_8b import WorldPlay8B
from pagedvid.models.worldplay.pipeline_wan5b import WorldPlayWan5B
from pagedvid.models.worldplay.trajectory import Trajectory
from pagedvid.paged_kv_cache import PagedKVCache
from tests.models.worldplay.recordings import call_names, calls, inputs, network, tokens_of

NUM_FRAMES = 32
GRIDS = {"hy8b": LatentGrid(8, 2, 3, 1), "wan5b": LatentGrid(4, 4, 6, 2)}
RECORDED_SEED = 0
"""Requests with this seed start from the recorded noise."""


class Recorded8B(WorldPlay8B):
    def noise(self, seed: int, chunk_index: int) -> Tensor:
        return recorded_noise("hy8b", chunk_index) if seed == RECORDED_SEED else super().noise(seed, chunk_index)


class RecordedWan5B(WorldPlayWan5B):
    def noise(self, seed: int, chunk_index: int) -> Tensor:
        return recorded_noise("wan5b", chunk_index) if seed == RECORDED_SEED else super().noise(seed, chunk_index)


def recorded_noise(variant: str, chunk: int) -> Tensor:
    return tokens_of(variant, inputs(variant)["noise"][0])[4 * chunk : 4 * chunk + 4].flatten(0, 1).clone()


def make_model(variant: str) -> WorldPlayModel:
    kind = Recorded8B if variant == "hy8b" else RecordedWan5B
    return kind(network(variant), GRIDS[variant], inputs(variant)["points_local"])


def make_engine(
    model: WorldPlayModel, codec: str = "fp32", correction: str = "measured", shard=None, **settings
) -> Engine:
    geometry = model.geometry
    spec = CacheSpec(
        geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, codecs=StreamCodecs(codec),
        correction=correction,
        debug_checks=True,
    )  # fmt: skip
    settings = {"num_denoise_steps": 4, "max_batch_tokens": 10_000, **settings}
    return Engine(model, PagedKVCache(spec, "8MiB", shard=shard), Window(1, 1), **settings)


def request(
    variant: str, name: str = "recorded", seed: int = RECORDED_SEED, first_frame: int = 0, num_frames: int = NUM_FRAMES
) -> VideoRequest:
    """A request along the recorded trajectory from `first_frame` on."""
    x, frames = inputs(variant), slice(first_frame, first_frame + num_frames)
    trajectory = Trajectory(Cameras.of(x["viewmats"][0, frames], x["Ks"][0, frames]), x["action"][0, frames])
    return VideoRequest(name, "", num_frames, seed, {"trajectory": trajectory, "embeddings": x})


@dataclass
class Calls:
    """What went into the network and came out of it, call by call."""

    outputs: list[Tensor] = field(default_factory=list)
    timesteps: list[Tensor] = field(default_factory=list)

    def named(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(timesteps, output) by recorded name; for one video alone."""
        return dict(zip(call_names(), zip(self.timesteps, self.outputs, strict=True), strict=True))


@contextmanager
def watched(model: WorldPlayModel) -> Iterator[Calls]:
    seen = Calls()

    def keep(_module, arguments, output) -> None:
        seen.timesteps.append(arguments[1])
        seen.outputs.append(output)

    handle = model.network.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def run(engine: Engine, requests: Sequence[VideoRequest]) -> dict[str, Tensor]:
    """Latents [frames, C, rows, columns] of each request."""
    for asked in requests:
        engine.submit(asked)
    parts: dict[str, list[Tensor]] = {asked.id: [] for asked in requests}
    for output in engine.run():
        assert isinstance(output, ChunkOutput), output.error
        parts[output.request_id].append(torch.from_numpy(output.frames))
    assert engine.cache.stats().pages_used == 0
    return {name: torch.cat(chunks) for name, chunks in parts.items()}


def recorded_final(variant: str) -> Tensor:
    """[frames, C, rows, columns]."""
    return calls(variant)["final_latents"][0].transpose(0, 1)
