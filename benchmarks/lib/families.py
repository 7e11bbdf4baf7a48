"""Synthetic keys and values with known traits, for content that the demo model does not have.

The tokens of a chunk are a latent field of some rank, correlated from frame to frame; a fixed matrix per head spreads
it over the channels, and an unstructured part is added. Each family stresses one trait. Queries share the field, so
that attention finds matching tokens; scores have the standard deviation SCORE_DEVIATION.

Axes: C chunks, H heads, T tokens of a chunk, D head_dim; F frames of a chunk, S tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.tensors import Sample
from pagedvid.rotary.tables import rotate

SCORE_DEVIATION = 2.0
NUM_HEADS = 2


@dataclass(frozen=True)
class Traits:
    """Traits of a family."""

    rank: int
    """Rank of the field; the head dimension is full rank."""
    persistence: float
    """Correlation of a token with the token at the same place one frame earlier, 0 to 1."""
    unstructured: float = 0.1
    """Standard deviation of the unstructured part; the field's is 1."""
    outlier_channels: int = 0
    """Number of channels multiplied by 5 to 13 and offset by as much, as in keys of video models."""
    tail_freedom: float | None = None
    """Degrees of freedom of Student's t for the field and the unstructured part; None: Gaussian."""
    likeness: float = 0.0
    """Distance in tokens over which neighbours in a frame are alike; 0: they are independent."""


FAMILIES = {
    "outlier channels": Traits(rank=32, persistence=0.9, outlier_channels=4),
    "low rank": Traits(rank=6, persistence=0.9),
    "full rank, no redundancy": Traits(rank=64, persistence=0.0, unstructured=0.0),
    "heavy tails": Traits(rank=32, persistence=0.9, tail_freedom=3.0),
    "static scene": Traits(rank=32, persistence=0.995, unstructured=0.03),
    "fast scene": Traits(rank=32, persistence=0.5),
}


def draw_family(
    name: str, seed: int, head_dim: int = 64, num_chunks: int = 3, num_frames: int = 3, frame_tokens: int = 195
) -> Sample:
    """One video of a family. Other seeds share its mixing matrices and channel factors, as videos of one model."""
    return draw_video(FAMILIES[name], name, seed, head_dim, num_chunks, num_frames, frame_tokens)


def draw_video(
    traits: Traits, name: str, seed: int, head_dim: int, num_chunks: int, num_frames: int, frame_tokens: int
) -> Sample:
    """One video with these traits. Videos of one name share the mixing matrices and channel factors."""
    model = np.random.default_rng(sum(name.encode()))
    video = np.random.default_rng([seed, 1])
    shape = (NUM_HEADS, num_chunks + 1, num_frames, frame_tokens)
    mixing = [model.standard_normal((NUM_HEADS, traits.rank, head_dim)) * _spectrum(traits.rank) for _ in range(2)]
    field = _field(video, shape, traits)
    k, v = (_spread(video, field, matrix, traits) for matrix in mixing)
    channel_factor, offset = np.ones(head_dim), np.zeros(head_dim)
    channels = model.permutation(head_dim)[: traits.outlier_channels]
    channel_factor[channels] = model.uniform(5, 13, len(channels))
    offset[channels] = channel_factor[channels] * model.choice([-1, 1], len(channels))
    q = _spread(video, field, mixing[0], traits)
    k = k * torch.from_numpy(channel_factor).float() + torch.from_numpy(offset).float()
    tables = _tables(head_dim, (num_chunks + 1) * num_frames, frame_tokens, num_frames * frame_tokens)
    return _sample(name, q, k, v, tables, frame_tokens)


def _sample(name: str, q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], frame_tokens: int) -> Sample:
    """q, k, v [C + 1, H, T, D]; queries are scaled to give scores of the wanted standard deviation."""
    cos, sin = tables
    scores = rotate(q[-1], cos[-1], sin[-1]) @ rotate(k[0], cos[0], sin[0]).mT * q.shape[-1] ** -0.5
    q = q * (SCORE_DEVIATION / scores.std())
    return Sample(k[:-1], v[:-1], q[None, -1], k[None, -1], v[None, -1], cos, sin, q[:-1], name, name, 0, frame_tokens)


def _spectrum(rank: int) -> np.ndarray:
    """Falling strengths of the field's components, of mean square 1 / rank."""
    strength = 1.0 / np.sqrt(1.0 + np.arange(rank))
    return (strength / np.sqrt((strength**2).sum()))[:, None]


def _draw(random: np.random.Generator, shape: tuple[int, ...], traits: Traits) -> np.ndarray:
    if traits.tail_freedom is None:
        return random.standard_normal(shape)
    return random.standard_t(traits.tail_freedom, shape) / np.sqrt(traits.tail_freedom / (traits.tail_freedom - 2))


def _field(random: np.random.Generator, shape: tuple[int, ...], traits: Traits) -> np.ndarray:
    """Autoregression over all frames of the video, [H, C + 1, F, S, rank]."""
    heads, chunks, frames, tokens = shape
    field = _alike(_draw(random, (chunks * frames, heads, tokens, traits.rank), traits), traits.likeness)
    for frame in range(1, len(field)):
        keep = traits.persistence
        field[frame] = keep * field[frame - 1] + np.sqrt(1 - keep**2) * field[frame]
    return np.moveaxis(field.reshape(chunks, frames, heads, tokens, traits.rank), 2, 0)


def _alike(field: np.ndarray, likeness: float) -> np.ndarray:
    """Replaces every token of [..., S, rank] by a Gaussian mean over its neighbours on a circle; keeps the variance."""
    if not likeness:
        return field
    tokens = field.shape[-2]
    distance = np.minimum(np.arange(tokens), tokens - np.arange(tokens))
    weights = np.exp(-(distance**2) / (2 * likeness**2))
    response = np.fft.rfft(weights / np.sqrt((weights**2).sum()))[:, None]
    return np.fft.irfft(np.fft.rfft(field, axis=-2) * response, n=tokens, axis=-2)


def _spread(random: np.random.Generator, field: np.ndarray, mixing: np.ndarray, traits: Traits) -> Tensor:
    """Keys, values or queries from a field, float32 [C + 1, H, T, D]."""
    x = np.einsum("hcfsr,hrd->chfsd", field, mixing)
    x = x + traits.unstructured * _draw(random, x.shape, traits)
    return torch.from_numpy(x.reshape(*x.shape[:2], -1, x.shape[-1])).float()


def _tables(head_dim: int, num_frames: int, frame_tokens: int, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """Rotary tables [C + 1, T, D / 2]: half of the pairs encode the frame, the others the token within the frame."""
    token = torch.arange(num_frames * frame_tokens)
    frequency = 32.0 ** -torch.linspace(0, 1, head_dim // 4)
    angles = torch.cat(
        [(token // frame_tokens)[:, None] * frequency, (token % frame_tokens)[:, None] * frequency / 4], 1
    )
    return tuple(table.float().unflatten(0, (-1, chunk_tokens)) for table in (angles.cos(), angles.sin()))  # type: ignore[return-value]
