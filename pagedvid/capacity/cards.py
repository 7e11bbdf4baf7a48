"""A model card: the integers of one model, and the stream that follows from them. No weights, no tensors.

A card says how many tokens a second of video is (patch, VAE strides, frame rate), how large a token's keys and values
are (layers, heads, branches), how far back the model looks, and how large its weights are. card_files.py reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Window
from pagedvid.capacity.look_back import MAX_LENGTH, LookBack, RebuiltLookBack, read_look_back
from pagedvid.errors import ConfigError
from pagedvid.shown import short, shown

if TYPE_CHECKING:
    from pagedvid.cache.spec import CacheSpec

MAX_SIDE = 2**16
"""Most pixels of a side; more is a typing mistake."""
MAX_BRANCHES = 16
"""Most branches of a stream."""


@dataclass(frozen=True)
class Resolution:
    """Pixels of a frame."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @staticmethod
    def parse(written: object) -> Resolution:
        """Reads "832x480". Raises ConfigError."""
        sides = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", str(written).lower())
        if sides is None:
            raise ConfigError(f"resolution is {shown(written)}; write WIDTHxHEIGHT in pixels, such as 832x480")
        width, height = map(int, sides.groups())
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise ConfigError(f"resolution is {shown(written)}; each side must be from 1 to {MAX_SIDE} pixels")
        return Resolution(width, height)


@dataclass(frozen=True)
class StreamSize:
    """One stream of a model at one resolution, as the cache sees it."""

    shape: KVShape
    window: Window
    chunk_tokens: int
    """Tokens of one stored chunk."""
    num_branches: int
    max_commits: int | None
    """Commits that the stream makes in all; None: any number."""
    current_tokens: int
    """Tokens denoised together, per branch."""
    num_query_heads: int
    seconds: float
    """Seconds of video that the window spans."""

    def on_pages_for(self, codecs: StreamCodecs) -> StreamSize:
        """The same stream on pages that suit the codecs."""
        return replace(self, shape=self.shape.with_pages_for(codecs))

    def cache_spec(self, codecs: StreamCodecs) -> CacheSpec:
        """What a cache for such streams is made for, on pages of this size."""
        from pagedvid.cache.spec import CacheSpec  # imports PyTorch

        return CacheSpec(
            self.shape.num_layers,
            self.shape.num_kv_heads,
            self.shape.head_dim,
            num_query_heads=self.num_query_heads,
            codecs=codecs,
            page_rows=self.shape.page_rows,
            tokens_per_frame=self.shape.tokens_per_frame,
            frames_per_block=self.shape.frames_per_block,
        )

    def pages(self, codecs: StreamCodecs) -> int:
        """Pages that `open` reserves for the stream, all branches."""
        return self.num_branches * peak_pages(self.shape, self.window, codecs, self.chunk_tokens, self.max_commits)


@dataclass(frozen=True)
class Published:
    """A cache size that was published; a test checks that the card reproduces it."""

    look_back: LookBack
    num_bytes: int
    """Bytes of one stream in BF16, all of the original's copies included."""
    source: str


@dataclass(frozen=True)
class ModelCard:
    """One model. Field names are the keys of the YAML file."""

    name: str
    title: str
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    patch: tuple[int, int, int]
    """Latent frames, rows and columns that one token covers."""
    vae_stride: tuple[int, int, int]
    """Pixel frames, rows and columns that one latent element covers."""
    resolution: Resolution
    frames_per_second: float
    """Pixel frames per second of the finished video."""
    frames_per_chunk: int
    """Latent frames of a chunk."""
    denoise_steps: int
    window: LookBack
    weights: Mapping[str, int]
    """Bytes of the video transformer's weights, by number format."""
    block: Mapping[str, int] = field(default_factory=dict)
    """Bytes of one of its `num_layers` blocks: bf16 as it is, fp8 with linear layers in eight bits. Empty: unknown."""
    vae_features: int = 0
    """Bytes that its VAE keeps in main memory for one video of `resolution` whose frames come out while it is made.
    0: it decodes finished videos only, or keeps nothing."""
    current_frames: int = 0
    """Latent frames denoised together, which may be several chunks in flight; 0: those of one chunk."""
    branches: tuple[str, ...] = ("cond",)
    forwards_per_step: float = 0
    """Forwards of a chunk in one denoise step, on average; 0: one for each branch. Others where guidance runs several
    over one cache."""
    original_copies: int = 1
    """How many differently transformed copies of keys and values the model's own program keeps. pagedvid stores one and
    transforms it when it is read."""
    published: tuple[Published, ...] = ()

    @property
    def shape(self) -> KVShape:
        """Keys and values as the cache sees them."""
        return KVShape(self.num_layers, self.num_kv_heads, self.head_dim)

    @property
    def latent_frames_per_second(self) -> float:
        """Latent frames (the unit of all windows) in one second of video."""
        return self.frames_per_second / (self.vae_stride[0] * self.patch[0])

    @property
    def frames_in_flight(self) -> int:
        """Latent frames denoised together."""
        return self.current_frames or self.frames_per_chunk

    def tokens_per_frame(self, resolution: Resolution) -> int:
        """Tokens of one latent frame. Raises ConfigError when the strides do not divide the resolution."""
        down, right = (self.vae_stride[axis] * self.patch[axis] for axis in (1, 2))
        if resolution.height % down or resolution.width % right:
            nearest = Resolution(_nearest(resolution.width, right), _nearest(resolution.height, down))
            raise ConfigError(
                f"resolution {resolution} does not fit {self.name}: a token covers {right}x{down} pixels, so the width "
                f"must be a multiple of {right} and the height of {down}; the nearest is {nearest}"
            )
        return (resolution.height // down) * (resolution.width // right)

    def vae_stream_bytes(self, resolution: Resolution) -> int:
        """What the VAE keeps for one video of a resolution: features of convolutions, so many for each pixel."""
        own = self.resolution.width * self.resolution.height
        return self.vae_features * resolution.width * resolution.height // own

    def look_back(self, written: str) -> LookBack:
        """What --window asks for: "1+6" (chunks), "18frames" or "4.5s". Raises ConfigError."""
        if match := re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)s", written.replace(" ", ""), re.ASCII):
            return self.look_back_of_seconds(float(match[1]))
        look_back = read_look_back(written)
        if isinstance(look_back, RebuiltLookBack):
            return self.look_back_of_frames(look_back.memory_frames)
        if isinstance(self.window, RebuiltLookBack):
            raise ConfigError(
                f"--window {short(written)}: {self.name} rebuilds its memory for every chunk and has no sinks; give "
                f"its length in frames or seconds, such as {self.window}"
            )
        return look_back

    def look_back_of_seconds(self, seconds: float) -> LookBack:
        """The shortest one of at least that many seconds of video. Raises ConfigError."""
        frames = seconds * self.latent_frames_per_second
        if frames > MAX_LENGTH:
            raise ConfigError(f"a window of {seconds:g} s is too long; the most is {MAX_LENGTH} frames")
        return self.look_back_of_frames(max(1, -int(-frames // 1)))

    def look_back_of_frames(self, num_frames: int) -> LookBack:
        """The shortest one of at least that many latent frames; a sliding one keeps the card's sinks."""
        if isinstance(self.window, RebuiltLookBack):
            return RebuiltLookBack(num_frames)
        num_chunks = -(-num_frames // self.frames_per_chunk)
        return self.window.with_length(max(1, num_chunks - self.window.sink_chunks))

    def stream_size(self, resolution: Resolution, look_back: LookBack, num_branches: int | None = None) -> StreamSize:
        """One stream. Raises ConfigError when the strides do not divide the resolution."""
        frame_tokens = self.tokens_per_frame(resolution)
        num_frames = look_back.num_frames(self.frames_per_chunk)
        if isinstance(look_back, RebuiltLookBack):
            num_chunks = -(-num_frames // self.frames_per_chunk)
            # Chunks of equal length, so that the last one is not short and full of padding.
            window, chunk_tokens = Window(0, num_chunks), -(-num_frames * frame_tokens // num_chunks)
            max_commits: int | None = num_chunks
        else:
            window = Window(look_back.sink_chunks, look_back.recent_chunks)
            chunk_tokens, max_commits = self.frames_per_chunk * frame_tokens, None
        return StreamSize(
            shape=self.shape.with_frames(frame_tokens, self.frames_per_chunk),
            window=window,
            chunk_tokens=chunk_tokens,
            num_branches=num_branches or len(self.branches),
            max_commits=max_commits,
            current_tokens=self.frames_in_flight * frame_tokens,
            num_query_heads=self.num_query_heads,
            seconds=num_frames / self.latent_frames_per_second,
        )


def _nearest(side: int, stride: int) -> int:
    return max(1, (side + stride // 2) // stride) * stride
