"""Bytes that one video keeps: the original's two copies of its memory, and what pagedvid stores of it.

The memory is bounded by the number of frames that are selected, so that these do not grow with the video. The 8B's text
keys are the same for both and are listed on their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.models.worldplay.memory import BLOCK_FRAMES, MemoryPolicy

ORIGINAL_COPIES = 2
"""Rotary and projective keys, and values plain and projected."""


@dataclass(frozen=True)
class MemoryBytes:
    """The largest memory of one video."""

    memory_frames: int
    original_bytes: int
    """BF16, both copies."""
    stored_bytes: int
    """Pages of one copy: codes, step sizes, zero points, padding, correction factors."""

    @property
    def ratio(self) -> float:
        """How many times smaller."""
        return self.original_bytes / self.stored_bytes if self.stored_bytes else 1.0


def memory_bytes(geometry: ModelGeometry, policy: MemoryPolicy, num_frames: int, codec: str) -> MemoryBytes:
    """What a video of `num_frames` latent frames keeps at most. Its last chunk remembers the most frames."""
    last_chunk = BLOCK_FRAMES * ((num_frames - 1) // BLOCK_FRAMES)
    frames = last_chunk if last_chunk <= policy.keeps_all_until else policy.memory_frames
    if frames == 0:
        return MemoryBytes(0, 0, 0)
    shape = KVShape(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim)
    shape = shape.with_frames(geometry.tokens_per_frame, geometry.frames_per_chunk).with_pages_for(StreamCodecs(codec))
    num_tokens = frames * geometry.tokens_per_frame
    stored_bytes = shape.stored_bytes(num_tokens, ChunkCodecs.read(codec))
    return MemoryBytes(frames, ORIGINAL_COPIES * shape.bf16_bytes(num_tokens), stored_bytes)


def text_bytes(geometry: ModelGeometry, num_text_tokens: int) -> int:
    """Text keys and values of the 8B in BF16; the WAN-5B keeps none."""
    return KVShape(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim).bf16_bytes(num_text_tokens)
