"""What the models on a Wan transformer have in common: integers of the transformer, frame size, chunk length, window.

Their authors count a window in latent frames, including sinks and the current chunk; pagedvid counts chunks, without
the current one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import FrameFormat, ModelGeometry
from pagedvid.errors import ConfigError

FRAMES_PER_LATENT = 4
"""Frames that the VAE makes of a latent frame; the first latent frame of a video becomes a single frame."""


@dataclass(frozen=True, kw_only=True)
class WanSettings:
    """How a model is run. Raises ConfigError for what does not fit together."""

    name: str
    latent_rows: int
    latent_columns: int
    frames_per_chunk: int
    """Latent frames."""
    fps: float
    """Frames per second once decoded."""
    pixels_per_latent: int = 8
    """Rows (and columns) of pixels per row (column) of latents: 8 in the VAE of Wan 2.1, 16 in that of Wan 2.2 5B."""
    sink_frames: int = 0
    """First latent frames that are never evicted (`sink_size`)."""
    window_frames: int | None = None
    """Most latent frames that attention sees: sinks, recent ones and the current chunk (`local_attn_size`). None: the
    configured window."""
    positions: str = "absolute"
    """Where rotary positions start, see `Window`."""
    text_tokens: int = 512
    """Rows of an encoded prompt, padding included."""

    def __post_init__(self) -> None:
        if self.frames_per_chunk < 1:
            raise ConfigError(f"frames_per_chunk is {self.frames_per_chunk}; it must be at least 1")
        if self.window_frames is not None:
            window_in_chunks(self.frames_per_chunk, self.sink_frames, self.window_frames, self.positions)
        elif self.sink_frames:
            raise ConfigError(
                f"sink_frames is {self.sink_frames}, but window_frames is not set: set both, or neither and use the "
                "configured sink_chunks and recent_chunks"
            )

    @property
    def branches(self) -> tuple[str, ...]:
        """The histories that a stream keeps."""
        return ("cond",)

    @property
    def frames(self) -> FrameFormat:
        """What decoded frames are like."""
        height, width = (self.pixels_per_latent * number for number in (self.latent_rows, self.latent_columns))
        return FrameFormat(height, width, self.fps, FRAMES_PER_LATENT)

    def window(self, configured: Window) -> Window:
        """The model's own window, or the configured one."""
        if self.window_frames is None:
            return configured
        return window_in_chunks(self.frames_per_chunk, self.sink_frames, self.window_frames, self.positions)


def window_in_chunks(frames_per_chunk: int, sink_frames: int, window_frames: int, positions: str) -> Window:
    """A window of frames that counts sinks and current chunk, as `Window`, which counts chunks without the current one.

    Self-Forcing evicts exactly as many tokens as the new chunk needs. These are whole chunks if all lengths are; a
    window that would evict part of a chunk is refused with ConfigError.
    """
    for name, frames in (("sink_frames", sink_frames), ("window_frames", window_frames)):
        if frames < 0 or frames % frames_per_chunk:
            below = max(0, frames - frames % frames_per_chunk)
            raise ConfigError(
                f"{name} is {frames}; it must be a multiple of frames_per_chunk, {frames_per_chunk}, such as "
                f"{below} or {below + frames_per_chunk}"
            )
    recent_chunks = (window_frames - sink_frames) // frames_per_chunk - 1
    if recent_chunks < 1:
        raise ConfigError(
            f"window_frames is {window_frames}; it must hold sink_frames, {sink_frames}, the current chunk and at "
            f"least one recent chunk of {frames_per_chunk}: {sink_frames + 2 * frames_per_chunk} or more"
        )
    return Window(sink_frames // frames_per_chunk, recent_chunks, positions)


@dataclass(frozen=True)
class TransformerShape:
    """The integers of a Wan transformer's config.json that decide its geometry."""

    num_layers: int
    num_heads: int
    head_dim: int
    patch: int = 2

    def geometry(self, settings: WanSettings, branches: tuple[str, ...] = ("cond",)) -> ModelGeometry:
        """The geometry with the settings' frame and chunk. Raises ConfigError when patches do not divide a frame."""
        rows, columns = settings.latent_rows, settings.latent_columns
        if min(rows, columns) < self.patch or rows % self.patch or columns % self.patch:
            raise ConfigError(
                f"a latent frame of {settings.name} has {rows} x {columns} positions; both must be multiples of "
                f"{self.patch} (frames of a multiple of {self.patch * settings.pixels_per_latent} pixels)"
            )
        return ModelGeometry(
            num_layers=self.num_layers,
            num_query_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            tokens_per_frame=rows * columns // self.patch**2,
            frames_per_chunk=settings.frames_per_chunk,
            branches=branches,
        )


AnySettings = TypeVar("AnySettings", bound=WanSettings)


def with_frame_size(
    settings: AnySettings, shape: TransformerShape, height: int | None, width: int | None
) -> AnySettings:
    """The settings for frames of `height` x `width` pixels; None: their own. Raises ConfigError for frames that are not
    made of whole tokens."""
    token_pixels = settings.pixels_per_latent * shape.patch
    for side, pixels in (("height", height), ("width", width)):
        if pixels is not None and pixels % token_pixels:
            below = max(pixels - pixels % token_pixels, token_pixels)
            raise ConfigError(
                f"model.{side} is {pixels}; {settings.name} makes frames of multiples of {token_pixels} pixels, such "
                f"as {below} or {below + token_pixels}"
            )
    return replace(
        settings,
        latent_rows=settings.latent_rows if height is None else height // settings.pixels_per_latent,
        latent_columns=settings.latent_columns if width is None else width // settings.pixels_per_latent,
    )


def shape_of(config: Any) -> TransformerShape:
    """The integers of a transformer's configuration. Raises ConfigError for transformers that do more than text to
    video."""
    patch = tuple(config.patch_size)
    if patch[0] != 1 or patch[1] != patch[2]:
        raise ConfigError(f"patch_size is {patch}; only (1, p, p) is supported: chunks are cut between latent frames")
    if config.out_channels not in (None, config.in_channels):
        raise ConfigError(
            f"the transformer reads {config.in_channels} channels and gives {config.out_channels}: it takes an image "
            "in addition to the noise, which is not supported; use a text-to-video checkpoint"
        )
    return TransformerShape(config.num_layers, config.num_attention_heads, config.attention_head_dim, patch[1])
