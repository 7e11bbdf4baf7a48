"""A `VideoModel` of a few numbers: untrained, but its attention decides its output. Fails where a prompt says so.

A prompt is a number, which sets the condition, and what goes wrong at which noise level: "3", "3 raises@0.5",
"3 nan@0.0" (0.0 is the commit pass). A seed of -n has no noise for the chunks from n - 1 on.

Every range is computed by matrix products of its own, so that only the engine and the cache could make one video
depend on another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import Attend, Decoder, ModelGeometry
from pagedvid.engine.schedule import Range
from pagedvid.errors import PromptError
from pagedvid.models.common.chunk_by_chunk import ChunkByChunk
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.paged_kv_cache import PagedKVCache
from tests.engine.latent_bytes import frames_of_latents

NUM_LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, CHANNELS = 2, 4, 2, 8, 6
TOKENS_PER_FRAME, FRAMES_PER_CHUNK = 7, 3
CHUNK_TOKENS = TOKENS_PER_FRAME * FRAMES_PER_CHUNK
"""21 tokens: 3 pages of fp32, 2 of bf16, 1 of int2, each partly empty."""
WIDTH = QUERY_HEADS * HEAD_DIM
KV_WIDTH = KV_HEADS * HEAD_DIM


@dataclass(frozen=True)
class ToyCondition:
    prompt: str
    phase: float
    fault: str = ""
    fault_level: float = -1.0


class ToyRope:
    layout = "half"

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        tokens = torch.arange(first_token, first_token + num_tokens, dtype=torch.float32)
        angles = tokens[:, None] * 0.5 ** torch.arange(HEAD_DIM // 2)
        return angles.cos(), angles.sin()


@dataclass
class ToyModel(ChunkByChunk):
    """`forwards` logs what every completed forward held: (prompt, role, noise level) of each range."""

    branches: tuple[str, ...] = ("cond",)
    positions: str = "window"
    name: str = "toy"
    frames_per_second: float = 8.0
    max_window_chunks: int = 4
    rope: ToyRope = field(default_factory=ToyRope)
    forwards: list[list[tuple[str, str, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.geometry = ModelGeometry(
            NUM_LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, TOKENS_PER_FRAME, FRAMES_PER_CHUNK, self.branches
        )
        draw = torch.Generator().manual_seed(7)

        def matrix(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=draw) / rows**0.5

        self.patch_in, self.patch_out = matrix(CHANNELS, WIDTH), matrix(WIDTH, CHANNELS)
        self.to_q = [2 * matrix(WIDTH, WIDTH) for _ in range(NUM_LAYERS)]
        self.to_kv = [matrix(WIDTH, 2 * KV_WIDTH) for _ in range(NUM_LAYERS)]
        self.from_out = [2 * matrix(WIDTH, WIDTH) for _ in range(NUM_LAYERS)]
        self.signal = matrix(3, WIDTH)

    def encode_prompt(self, prompt: str) -> ToyCondition:
        number, *faults = prompt.split()
        if not number.isdigit():
            raise PromptError(f"{prompt!r} does not begin with a number")
        if not faults:
            return ToyCondition(prompt, float(number))
        what, level = faults[0].split("@")
        return ToyCondition(prompt, float(number), what, float(level))

    def noise_levels(self, num_denoise_steps: int) -> tuple[float, ...]:
        return tuple(1 - step / num_denoise_steps for step in range(num_denoise_steps + 1))

    def initial_noise(self, seed: int, chunk_index: int) -> Tensor:
        if seed < 0 and chunk_index >= -seed - 1:
            raise ValueError(f"seed {seed} has no noise for chunk {chunk_index}")
        generator = torch.Generator().manual_seed(1000 * abs(seed) + chunk_index)
        return torch.randn(CHUNK_TOKENS, CHANNELS, generator=generator)

    def forward(
        self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[ToyCondition], attend: Attend
    ) -> Tensor:
        packed = list(zip(ranges, conditions, strict=True))
        for part, condition in packed:
            if condition.fault == "raises" and condition.fault_level == part.noise_level:
                raise FloatingPointError(f"prompt {condition.prompt!r} broke")
        sizes = [len(part.frames) * TOKENS_PER_FRAME for part in ranges]

        def times(x: Tensor, weight: Tensor) -> Tensor:
            return torch.cat([part @ weight for part in x.split(sizes)])

        x = times(latents_TC, self.patch_in) + torch.cat([self._signal(part, condition) for part, condition in packed])
        for layer in range(NUM_LAYERS):
            hidden = F.rms_norm(x, x.shape[-1:])
            q = times(hidden, self.to_q[layer]).unflatten(1, (QUERY_HEADS, HEAD_DIM))
            k, v = times(hidden, self.to_kv[layer]).unflatten(1, (2 * KV_HEADS, HEAD_DIM)).chunk(2, dim=1)
            x = x + times(attend(layer, q, k, v).flatten(1), self.from_out[layer])
        self.forwards.append([(condition.prompt, part.role, part.noise_level) for part, condition in packed])
        return torch.tanh(times(F.rms_norm(x, x.shape[-1:]), self.patch_out))

    def _signal(self, part: Range, condition: ToyCondition) -> Tensor:
        phase = torch.tensor(condition.phase)
        level = torch.tensor(part.noise_level)
        if condition.fault == "nan" and condition.fault_level == part.noise_level:
            level = level * torch.nan
        meaning = [phase.sin(), phase.cos(), level] if part.role == "cond" else [level * 0, level * 0, level]
        return (torch.stack(meaning) @ self.signal).expand(len(part.frames) * TOKENS_PER_FRAME, -1)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        clean = predictions["cond"]
        if "uncond" in predictions:
            clean = predictions["uncond"] + 1.5 * (clean - predictions["uncond"])
        return clean + (next_noise_level / noise_level) * (latents_TC - clean)

    def decoder(self, condition: ToyCondition) -> Decoder:
        return StatelessDecoder(self.decode)

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        return frames_of_latents(latents_TC, len(latents_TC) // TOKENS_PER_FRAME)


def toy_engine(
    model: ToyModel | None = None,
    codecs: StreamCodecs | str = "fp32",
    window: tuple[int, int] = (1, 1),
    num_pages: int = 800,
    **settings: object,
) -> Engine:
    """An engine over the toy model, two denoise steps unless told; every step checks the whole cache."""
    model = model or ToyModel()
    codecs = StreamCodecs(codecs) if isinstance(codecs, str) else codecs
    spec = CacheSpec(NUM_LAYERS, KV_HEADS, HEAD_DIM, QUERY_HEADS, codecs=codecs, debug_checks=True)
    cache = PagedKVCache(spec, num_pages * spec.shape.page_bytes)
    settings.setdefault("num_denoise_steps", 2)
    return Engine(model, cache, Window(*window, positions=model.positions), **settings)  # type: ignore[arg-type]


def assert_all_pages_free(engine: Engine) -> None:
    """As before the first request."""
    engine.cache.check()
    assert not engine.has_work
    assert engine.cache.streams == ()
    assert engine.cache.reserved_pages == 0
    assert engine.cache.pool.num_used_pages == 0
