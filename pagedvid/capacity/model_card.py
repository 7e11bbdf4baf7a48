"""A model card: the integers of one model. No weights, no tensors.

It says how long a video a number of tokens is (patch, VAE strides, frame rate), what one token's keys and values are
(layers, heads, branches), what the model keeps of the past, and what its weights weigh. Read by card_file.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pagedvid.cache.sizes import KVShape
from pagedvid.capacity.history import History
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

MAX_SIDE = 2**16
"""Pixels of a side; more is a slip of the keyboard."""


@dataclass(frozen=True)
class Resolution:
    """Pixels of a frame."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @staticmethod
    def parse(written: object) -> Resolution:
        """From "832x480". Raises ConfigError."""
        sides = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", str(written).lower())
        if sides is None:
            raise ConfigError(f"resolution is {shown(written)}; write WIDTHxHEIGHT in pixels, such as 832x480")
        width, height = map(int, sides.groups())
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise ConfigError(f"resolution is {shown(written)}; each side must be from 1 to {MAX_SIDE} pixels")
        return Resolution(width, height)


@dataclass(frozen=True)
class Published:
    """A cache size that somebody published, for the test that this card reproduces it."""

    history: History
    num_bytes: int
    """Of one stream in BF16, all of the original's copies."""
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
    """Of the finished video, pixel frames."""
    frames_per_chunk: int
    denoise_steps: int
    window: History
    weights: Mapping[str, int]
    """Bytes of the video transformer's weights by number format."""
    current_frames: int = 0
    """Latent frames denoised together; 0 means those of one chunk. More than one chunk may be in flight."""
    branches: tuple[str, ...] = ("cond",)
    original_copies: int = 1
    """How often the model's own program keeps keys and values, each transformed in another way. pagedvid stores them
    once and transforms them when they are read."""
    published: tuple[Published, ...] = field(default=())

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
            near = Resolution(_nearest(resolution.width, right), _nearest(resolution.height, down))
            raise ConfigError(
                f"resolution {resolution} does not fit {self.name}: a token covers {right}x{down} pixels, so width "
                f"must be a multiple of {right} and height of {down}; the nearest is {near}"
            )
        return (resolution.height // down) * (resolution.width // right)


def _nearest(side: int, stride: int) -> int:
    return max(1, (side + stride // 2) // stride) * stride
