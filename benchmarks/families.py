"""Synthetic keys and values whose traits are known: what a codec meets beyond the demo model.

Tokens of a chunk are a latent field of some rank, correlated from frame to frame, spread over the channels by a fixed
matrix per head, plus noise that follows no structure. Each family stresses one trait; `Traits` are its numbers.
Queries share the field, so attention finds matching tokens, with scores of standard deviation SCORE_DEVIATION.

Axes: C chunks, H heads, T tokens of a chunk, D head_dim; F frames of a chunk, S tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pagedvid.rotary.tables import rotate
from tensors import Sample

SCORE_DEVIATION = 2.0
NUM_HEADS = 2


@dataclass(frozen=True)
class Traits:
    """What a family is like."""

    rank: int
    """Of the field; the head dimension for full rank."""
    persistence: float
    """Correlation of a token with the same place one frame earlier, 0 to 1."""
    noise: float = 0.1
    """Deviation of the unstructured part; the field's is 1."""
    outlier_channels: int = 0
    """Channels enlarged by 5 to 13 and offset by as much, as video keys have them."""
    tail_freedom: float | None = None
    """Degrees of freedom of Student's t for field and noise; None: Gaussian."""
    likeness: float = 0.0
    """Tokens over which the field of a frame is alike; 0: none resembles its neighbours."""


FAMILIES = {
    "outlier channels": Traits(rank=32, persistence=0.9, outlier_channels=4),
    "low rank": Traits(rank=6, persistence=0.9),
    "full rank, no redundancy": Traits(rank=64, persistence=0.0, noise=0.0),
    "heavy tails": Traits(rank=32, persistence=0.9, tail_freedom=3.0),
    "static scene": Traits(rank=32, persistence=0.995, noise=0.03),
    "fast scene": Traits(rank=32, persistence=0.5),
}


def draw_family(
    name: str, seed: int, head_dim: int = 64, num_chunks: int = 3, num_frames: int = 3, frame_tokens: int = 195
) -> Sample:
    """One video of a family. Videos of other seeds share mixing matrices and channel scales: one model."""
    return draw_video(FAMILIES[name], name, seed, head_dim, num_chunks, num_frames, frame_tokens)


def draw_video(
    traits: Traits, name: str, seed: int, head_dim: int, num_chunks: int, num_frames: int, frame_tokens: int
) -> Sample:
    """One video with some traits. Videos of one name share mixing matrices and channel scales."""
    model = np.random.default_rng(sum(name.encode()))
    video = np.random.default_rng([seed, 1])
    shape = (NUM_HEADS, num_chunks + 1, num_frames, frame_tokens)
    mixing = [model.standard_normal((NUM_HEADS, traits.rank, head_dim)) * _spectrum(traits.rank) for _ in range(2)]
    field = _field(video, shape, traits)
    k, v = (_spread(video, field, matrix, traits) for matrix in mixing)
    channel_scale, offset = np.ones(head_dim), np.zeros(head_dim)
    channels = model.permutation(head_dim)[: traits.outlier_channels]
    channel_scale[channels] = model.uniform(5, 13, len(channels))
    offset[channels] = channel_scale[channels] * model.choice([-1, 1], len(channels))
    q = _spread(video, field, mixing[0], traits)
    k = k * torch.from_numpy(channel_scale).float() + torch.from_numpy(offset).float()
    tables = _tables(head_dim, (num_chunks + 1) * num_frames, frame_tokens, num_frames * frame_tokens)
    return _sample(name, q, k, v, tables, frame_tokens)


def _sample(name: str, q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], frame_tokens: int) -> Sample:
    """q, k, v [C + 1, H, T, D]; queries are scaled so that scores spread as they should."""
    cos, sin = tables
    scores = rotate(q[-1], cos[-1], sin[-1]) @ rotate(k[0], cos[0], sin[0]).mT * q.shape[-1] ** -0.5
    q = q * (SCORE_DEVIATION / scores.std())
    return Sample(k[:-1], v[:-1], q[None, -1], k[None, -1], v[None, -1], cos, sin, q[:-1], name, name, 0, frame_tokens)


def _spectrum(rank: int) -> np.ndarray:
    """Falling strengths of the field's components, mean square 1 / rank."""
    strength = 1.0 / np.sqrt(1.0 + np.arange(rank))
    return (strength / np.sqrt((strength**2).sum()))[:, None]


def _draw(random: np.random.Generator, shape: tuple[int, ...], traits: Traits) -> np.ndarray:
    if traits.tail_freedom is None:
        return random.standard_normal(shape)
    return random.standard_t(traits.tail_freedom, shape) / np.sqrt(traits.tail_freedom / (traits.tail_freedom - 2))


def _field(random: np.random.Generator, shape: tuple[int, ...], traits: Traits) -> np.ndarray:
    """[H, C + 1, F, S, rank], an autoregression over all frames of the video."""
    heads, chunks, frames, tokens = shape
    field = _alike(_draw(random, (chunks * frames, heads, tokens, traits.rank), traits), traits.likeness)
    for frame in range(1, len(field)):
        keep = traits.persistence
        field[frame] = keep * field[frame - 1] + np.sqrt(1 - keep**2) * field[frame]
    return np.moveaxis(field.reshape(chunks, frames, heads, tokens, traits.rank), 2, 0)


def _alike(field: np.ndarray, likeness: float) -> np.ndarray:
    """Every token of [..., S, rank] as a mean of its neighbours on a circle, with Gaussian weights, variance kept."""
    if not likeness:
        return field
    tokens = field.shape[-2]
    distance = np.minimum(np.arange(tokens), tokens - np.arange(tokens))
    weights = np.exp(-(distance**2) / (2 * likeness**2))
    response = np.fft.rfft(weights / np.sqrt((weights**2).sum()))[:, None]
    return np.fft.irfft(np.fft.rfft(field, axis=-2) * response, n=tokens, axis=-2)


def _spread(random: np.random.Generator, field: np.ndarray, mixing: np.ndarray, traits: Traits) -> Tensor:
    """[C + 1, H, T, D] float32 of a field."""
    x = np.einsum("hcfsr,hrd->chfsd", field, mixing)
    x = x + traits.noise * _draw(random, x.shape, traits)
    return torch.from_numpy(x.reshape(*x.shape[:2], -1, x.shape[-1])).float()


def _tables(head_dim: int, num_frames: int, frame_tokens: int, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """Rotary tables [C + 1, T, D / 2]: half of the pairs turn with the frame, the others along the frame's tokens."""
    token = torch.arange(num_frames * frame_tokens)
    frequency = 32.0 ** -torch.linspace(0, 1, head_dim // 4)
    angles = torch.cat(
        [(token // frame_tokens)[:, None] * frequency, (token % frame_tokens)[:, None] * frequency / 4], 1
    )
    return tuple(table.float().unflatten(0, (-1, chunk_tokens)) for table in (angles.cos(), angles.sin()))  # type: ignore[return-value]
