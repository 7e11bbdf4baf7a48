"""Queries, keys and values to try codecs on: captured from the demo model, or drawn from families with known traits.

A `Sample` is one layer of one video: the chunks that a cache would hold, the queries of the commit passes that store
them, and the next chunk as it is denoised, at several noise levels. All before rotary embedding, half layout.

In a family, the tokens of a chunk are a latent field of some rank, correlated from frame to frame; a fixed matrix per
head spreads it over the channels, and an unstructured part is added. Each family stresses one trait. Queries share the
field, so that attention finds matching tokens; scores have the standard deviation SCORE_DEVIATION.

Axes: C cached chunks, L noise levels, H heads, T tokens of a chunk, D head_dim; F frames of a chunk,
S tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pagedvid.calibration.statistics import Observation
from pagedvid.engine.schedule import Range
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.rotary.tables import rotate

SCORE_DEVIATION = 2.0
NUM_HEADS = 2


@dataclass(frozen=True)
class Sample(Observation):
    """One layer of one video, float32; the module docstring says more."""

    commit_q_CHTD: Tensor
    family: str
    name: str
    layer: int
    tokens_per_frame: int


def capture(model: DemoModel, prompt: str, seed: int, num_cached_chunks: int, num_steps: int = 8) -> list[Sample]:
    """All layers of one video of the demo model, made with an unquantized history.

    Of the chunk after the cached ones, the first, a middle and the last denoise step are kept.
    """
    condition, levels = model.encode_prompt(prompt), model.noise_levels(num_steps)
    watched = (0, num_steps // 2, num_steps - 1)
    history: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    steps: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for chunk in range(num_cached_chunks + 1):
        latents = model.initial_noise(seed, chunk)
        for number, (level, next_level) in enumerate(pairwise(levels)):
            seen, prediction = _dense_forward(model, latents, level, condition, history)
            if chunk == num_cached_chunks and number in watched:
                steps.append(seen)
            latents = model.advance(latents, {"cond": prediction}, level, next_level)
        if chunk < num_cached_chunks:
            history.append(_dense_forward(model, latents, levels[-1], condition, history)[0])
    size = model.geometry.chunk_tokens
    tables = [model.rope.tables(chunk * size, size) for chunk in range(num_cached_chunks + 1)]
    cos, sin = (torch.stack([table[i] for table in tables]) for i in (0, 1))
    samples = []
    for layer in range(model.geometry.num_layers):
        stored_q, stored_k, stored_v = (torch.stack([chunk[layer][i] for chunk in history]) for i in range(3))
        q, k, v = (torch.stack([step[layer][i] for step in steps]) for i in range(3))
        tokens_per_frame = model.geometry.tokens_per_frame
        samples.append(Sample(stored_k, stored_v, q, k, v, cos, sin, stored_q, "demo", prompt, layer, tokens_per_frame))
    return samples


def _dense_forward(
    model: DemoModel,
    latents: Tensor,
    level: float,
    condition: object,
    history: list[list[tuple[Tensor, Tensor, Tensor]]],
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """One dense forward: (q, k, v), each [H, T, D], by layer, and the prediction."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    size = model.geometry.chunk_tokens

    def attend(layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, /, **how: object) -> Tensor:
        own = tuple(x.float().transpose(0, 1).clone() for x in (q_THD, k_THD, v_THD))
        seen.append(own)  # type: ignore[arg-type]
        chunks = [*(chunk[layer] for chunk in history), own]
        keys = [rotate(chunk[1], *model.rope.tables(i * size, size)) for i, chunk in enumerate(chunks)]
        q_HTD = rotate(own[0], *model.rope.tables(len(history) * size, size))
        out_HTD = torch.nn.functional.scaled_dot_product_attention(
            q_HTD, torch.cat(keys, dim=1), torch.cat([chunk[2] for chunk in chunks], dim=1)
        )
        return out_HTD.transpose(0, 1).to(q_THD.dtype)

    with torch.no_grad():
        prediction = model.forward(latents, [Range(range(model.geometry.frames_per_chunk), level)], [condition], attend)
    return seen, prediction


# ---------------------------------------------------------------- families


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
