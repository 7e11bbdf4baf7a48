"""vLLM-Omni's frames and windows as chunks.

Its unit of eviction is the frame; a forward denoises, and a commit stores, `frames_per_block` of them, which are a
chunk here. A query sees the sinks, which are the first `sink_frames` of the video, and the last `window_frames` *with*
those being denoised; `Window.recent_chunks` does not count these:

    9 sink frames, a window of 9 frames, blocks of 3    =    Window(sink_chunks=3, recent_chunks=2)

Pages are kept exactly as long as they are seen; vLLM-Omni keeps one block more until the next one is committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError
from pagedvid.integrations.vllm_omni.settings import PagedSettings


@dataclass(frozen=True)
class SessionGeometry:
    """Sizes of every session of a pipeline."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    tokens_per_frame: int
    frames_per_block: int
    sink_blocks: int
    window_blocks: int
    """Counts the block being denoised."""
    streams: dict[str, int]
    """Number of the stream of each guidance branch; branches that never run on the same worker share one."""

    @classmethod
    def of(cls, asked: Any, overrides: Any) -> SessionGeometry:
        """Of a pipeline's `ARDiffusionKVCacheSpec`; what vLLM-Omni's `ARDiffusionKVConfig` sets comes first.

        Raises ConfigError.
        """
        frames = asked.frames_per_block
        window_frames = overrides.window_chunks or asked.window_frames
        sink_frames = overrides.sink_chunks or asked.sink_frames
        for name, count in (("window_frames", window_frames), ("sink_frames", sink_frames)):
            if count % frames:
                raise ConfigError(
                    f"{name} is {count}; it must be a multiple of the {frames} frames of a block, which are stored and "
                    "dropped as one chunk: set window_chunks and sink_chunks of ar_diffusion_kv_config accordingly"
                )
        if asked.max_scratch_tokens_per_branch:
            raise ConfigError(
                f"this pipeline adds {asked.max_scratch_tokens_per_branch} action or state tokens to a forward, which "
                "pages do not take: use vLLM-Omni's own runner for it"
            )
        if overrides.reset_at_boundary or asked.reset_at_boundary:
            raise ConfigError(
                "reset_at_boundary drops all but the sinks after every block, so that there is no history to keep in "
                "pages: use vLLM-Omni's own runner"
            )
        return cls(
            num_layers=asked.num_layers,
            num_kv_heads=asked.num_kv_heads,
            head_dim=asked.head_size,
            tokens_per_frame=asked.tokens_per_frame,
            frames_per_block=frames,
            sink_blocks=sink_frames // frames,
            window_blocks=window_frames // frames,
            streams={branch.name: branch.local_index for branch in asked.kv_branches},
        )

    @property
    def block_tokens(self) -> int:
        """Tokens of a block: of every forward, and of a chunk."""
        return self.frames_per_block * self.tokens_per_frame

    @property
    def num_streams(self) -> int:
        """Streams of a session."""
        return max(self.streams.values()) + 1

    @property
    def window(self) -> Window:
        """What a stream keeps: one recent chunk where none is seen, since the newest chunk is always kept."""
        return Window(self.sink_blocks, max(1, self.window_blocks - 1))

    def visible(self, num_committed: int) -> tuple[int, ...] | None:
        """The chunks that a block sees after so many commits; None: all that are kept."""
        return tuple(range(min(self.sink_blocks, num_committed))) if self.window_blocks == 1 else None

    def cache_spec(self, settings: PagedSettings) -> CacheSpec:
        """Of the cache for such sessions. Raises ConfigError."""
        return CacheSpec(
            self.num_layers,
            self.num_kv_heads,
            self.head_dim,
            codecs=settings.codecs,
            tokens_per_frame=self.tokens_per_frame,
            frames_per_block=self.frames_per_block,
            correction=settings.correction or settings.codecs.correction,
            keys_arrive="rotated",
        )

    def page_bytes(self, spec: CacheSpec) -> int:
        """Bytes of the pages that a session reserves: the most that it ever holds."""
        pages = peak_pages(spec.shape, self.window, spec.codecs, self.block_tokens)
        return self.num_streams * pages * spec.shape.page_bytes
