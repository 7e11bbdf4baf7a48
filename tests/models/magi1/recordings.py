"""Recorded rollouts, and the same rollouts through the engine and the paged cache.

Axes: C latent channels, F frames, H and W latent rows and columns, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import Attend
from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from pagedvid.engine.schedule import Range
from pagedvid.models.magi1.pipeline import MagiModel, frames_of, tokens_of
from pagedvid.models.magi1.spec import FrameConfig, MagiConfig, NetworkConfig, SamplingConfig
from pagedvid.models.magi1.weights import load_magi
from pagedvid.paged_kv_cache import PagedKVCache

DATA = Path(__file__).parents[2] / "data" / "magi1"
CHUNK_FRAMES = 3
TOLERANCE = 1e-4
NETWORK_A = NetworkConfig(
    num_layers=3,
    hidden_size=256,
    ffn_hidden_size=384,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=64,
    in_channels=4,
    caption_channels=32,
    caption_max_length=64,
)
NETWORK_B = NetworkConfig(
    num_layers=2,
    hidden_size=128,
    ffn_hidden_size=192,
    num_attention_heads=8,
    num_query_groups=4,
    kv_channels=16,
    gated_linear_unit=True,
    half_channel_vae=True,
    x_rescale_factor=0.1,
    in_channels=32,
    caption_channels=32,
    caption_max_length=64,
)
FRAMES_A = FrameConfig(latent_height=6, latent_width=8, chunk_width=CHUNK_FRAMES)
FRAMES_B = FrameConfig(latent_height=8, latent_width=6, chunk_width=CHUNK_FRAMES)
_PLAIN = SamplingConfig(cfg_number=1, distill_nearly_clean_chunk_threshold=2.0)


@dataclass(frozen=True)
class Rollout:
    """One recorded rollout: its settings and its tensors."""

    name: str
    sampling: SamplingConfig
    num_steps: int

    @property
    def data(self) -> dict[str, Tensor]:
        return tensors(f"rollout_{self.name}")

    @property
    def calls(self) -> list[dict[str, Any]]:
        return json.loads((DATA / f"rollout_{self.name}.calls.json").read_text())

    @property
    def config(self) -> MagiConfig:
        return MagiConfig("magi-1-tiny", NETWORK_A, FRAMES_A, self.sampling)

    @property
    def num_prefix_frames(self) -> int:
        return self.data["prefix"].shape[1] if "prefix" in self.data else 0

    @property
    def inputs(self) -> dict[str, Any]:
        given = {"embeddings": {"embeddings": self.data["captions"], "mask": self.data["caption_mask"]}}
        return given if "prefix" not in self.data else {**given, "prefix": {"latents": self.data["prefix"]}}

    def request(self, id: str = "a") -> VideoRequest:
        return VideoRequest(id, "recorded", self.data["final"].shape[1], inputs=self.inputs)


ROLLOUTS = {
    rollout.name: rollout
    for rollout in (
        Rollout("w1", replace(_PLAIN, window_size=1), 4),
        Rollout("w4", _PLAIN, 8),
        Rollout("w4_distill", SamplingConfig(cfg_number=1, distill=True), 12),
        Rollout("w4_cfg3", SamplingConfig(cfg_number=3), 8),
        Rollout("w4_prefix", _PLAIN, 8),
    )
}


@lru_cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{name}.safetensors")


class RecordedModel(MagiModel):
    """Starts from the recorded noise and keeps a log of its calls."""

    def __init__(self, config: MagiConfig, network: Any) -> None:
        super().__init__(config, network)
        self.network.t_embedder.frequencies = tensors("schedules")["sinusoid_freqs"]
        self.noise_CFHW = tensors("rollout_w4")["x0"]
        self.forwards: list[tuple[Sequence[Range], Sequence[Any], Tensor]] = []
        """Ranges, their conditions, velocities."""
        self.moved: list[Tensor] = []
        """Latents [T, C] after every sampler step of a chunk, in order."""

    def initial_latents(self, condition: Any, seed: int, chunk_index: int) -> Tensor:
        first = chunk_index * CHUNK_FRAMES
        noise = tokens_of(self.noise_CFHW[:, first : first + CHUNK_FRAMES])
        return noise.roll(seed, 0)

    def forward(self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[Any], attend: Attend) -> Tensor:
        out = super().forward(latents_TC, ranges, conditions, attend)
        self.forwards.append((ranges, conditions, out))
        return out

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        self.moved.append(super().advance(latents_TC, predictions, noise_level, next_noise_level))
        return self.moved[-1]


def recorded_model(rollout: Rollout, **settings: Any) -> RecordedModel:
    """`settings`: of `ModelConfig`."""
    loaded = load_magi(rollout.config, DATA / "weights_a.safetensors", ModelConfig(**settings))
    model = RecordedModel(rollout.config, loaded.network)
    model.noise_CFHW = rollout.data["x0"]
    return model


def engine_of(
    model: MagiModel, num_steps: int | None, codec: str = "fp32", memory: int | str = "4MiB", **settings
) -> Engine:
    """Every step checks the whole cache. The configured window is one that MAGI-1 must not heed."""
    geometry, correction = model.geometry, settings.pop("correction", "measured")
    shard = settings.pop("shard", None)
    spec = CacheSpec(
        geometry.num_layers,
        geometry.num_kv_heads,
        geometry.head_dim,
        geometry.num_query_heads,
        codecs=StreamCodecs(codec),
        correction=correction,
        debug_checks=True,
    )
    settings.setdefault("max_batch_tokens", 10_000)
    return Engine(model, PagedKVCache(spec, memory, shard=shard), Window(0, 1), num_denoise_steps=num_steps, **settings)


@dataclass
class Played:
    """What came out."""

    final: dict[str, Tensor] = field(default_factory=dict)
    """Latents [C, F, H, W] by request."""
    chunk_indices: dict[str, list[int]] = field(default_factory=dict)


def play(engine: Engine) -> Played:
    """Runs to the end; a failure of a video is raised."""
    frames: dict[str, list[Tensor]] = {}
    played = Played()
    for output in engine.run():
        if isinstance(output, RequestFailure):
            raise output.error
        assert isinstance(output, ChunkOutput)
        frames.setdefault(output.request_id, []).append(torch.from_numpy(output.frames))
        played.chunk_indices.setdefault(output.request_id, []).append(output.chunk_index)
    played.final = {id: torch.cat(parts).transpose(0, 1) for id, parts in frames.items()}
    return played


def final_of(rollout: Rollout, codec: str = "fp32", model: MagiModel | None = None, **settings) -> Tensor:
    """Final latents of a recorded rollout alone."""
    engine = engine_of(model or recorded_model(rollout), rollout.num_steps, codec, **settings)
    engine.submit(rollout.request())
    return play(engine).final["a"]


def video_of_tokens(latents_TC: Tensor) -> Tensor:
    """[C, F, H, W]."""
    return frames_of(latents_TC, FRAMES_A)


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())
