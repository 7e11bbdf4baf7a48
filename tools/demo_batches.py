"""The training of the demo model: rendered clips, noise levels, block-triangular attention and the loss.

Axes: B clips, I chunks of a clip, S tokens of a chunk, C latent channels, H heads, D head_dim. A training sequence of
one clip holds the clean copies of chunks 0 ... I-2 (what commit passes see) and then the noisy chunks 0 ... I-1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pagedvid.models.demo.captions import caption, read_prompt
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.spec import patches_of
from pagedvid.models.demo.world import Scene, coverage, random_scene, render
from pagedvid.rotary.grid_rotary import GridRotary

FRAMES_PER_CHUNK = 8
LEVEL_SHIFT = 5.0
"""The content of a video is decided close to pure noise, so most levels are drawn there."""
SMALLEST_LEVEL = 0.2
"""Smallest level in the loss weight 1 / level^2."""
HISTORY_NOISE = 0.2
"""Largest noise level in the history of half of the clips, so that imperfect chunks do not derail a video."""
BOX_WEIGHT, BOX_MARGIN = 5.0, 1.5
"""Loss weight in a square around a thing, and the margin of the square in pixels: corners tell kinds apart."""
OPEN_PART, OPEN_DROP = 0.25, 0.4
"""Fraction of the captions that leave attributes open, and probability for each attribute."""
CHUNKS_PER_CLIP = (1, 1, 2, 3, 6)
"""Clip lengths are drawn from these."""


@dataclass(frozen=True)
class Batch:
    """Clips with their captions; `weight` is the loss weight of each latent value."""

    clean_BISC: Tensor
    weight_BISC: Tensor
    slots_BK: Tensor


def make_batch(rng: np.random.Generator, chunks_per_batch: int) -> Batch:
    """Renders clips of one random length; their clean and noisy chunks together are about `chunks_per_batch`."""
    num_chunks = int(rng.choice(CHUNKS_PER_CLIP))
    num_clips = max(1, round(chunks_per_batch / (2 * num_chunks - 1)))
    images, weights, slots = [], [], []
    for _ in range(num_clips):
        scene = random_scene(rng)
        first_frames_I = np.arange(num_chunks) * FRAMES_PER_CHUNK
        gap = num_chunks > 2 and rng.random() < 0.4
        if gap:
            # As after evictions: the sink is the first chunk of the video, the rest comes from later.
            first_frames_I[1:] += FRAMES_PER_CHUNK * int(rng.integers(1, 12))
        frames_F = (first_frames_I[:, None] + np.arange(FRAMES_PER_CHUNK)).ravel()
        weight = loss_weight(scene, frames_F)
        if gap:
            # No model generates the first chunk after a gap: it is history only.
            weight[FRAMES_PER_CHUNK : 2 * FRAMES_PER_CHUNK] = 0.0
        images.append(render(scene, frames_F))
        weights.append(weight)
        slots.append(read_prompt(caption(scene, rng, OPEN_DROP if rng.random() < OPEN_PART else 0.0)))
    clean = patches_of(torch.from_numpy(np.stack(images)) * 2 - 1)
    weight = patches_of(torch.from_numpy(np.stack(weights))[..., None].expand(*np.shape(weights), 3))
    shape = (num_clips, num_chunks, -1, clean.shape[-1])
    return Batch(clean.view(shape), weight.view(shape), torch.from_numpy(np.stack(slots)))


def loss_weight(scene: Scene, frames_F: np.ndarray) -> np.ndarray:
    """Weight of each pixel, float32 [F, 32, 32]: 1, and BOX_WEIGHT in the square around each thing."""
    weight = np.ones(1)
    for thing in scene.things:
        box = replace(thing, kind="square")
        weight = np.maximum(weight, 1 + (BOX_WEIGHT - 1) * coverage(box, frames_F, margin=BOX_MARGIN))
    return weight.astype(np.float32)


def plain_attention(q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> Tensor:
    """Scaled attention in three calls. With few keys on a CPU, the fused call takes three times as long backwards."""
    scores = (q_BHSD * q_BHSD.shape[-1] ** -0.5) @ k_BHSD.transpose(-1, -2)
    return torch.softmax(scores, dim=-1) @ v_BHSD


def rotated(x_BSHD: Tensor, cos_SP: Tensor, sin_SP: Tensor) -> Tensor:
    """Rotary embedding in half layout. `rotary.tables.rotate` writes its result in place, which has no gradient."""
    first, second = x_BSHD.chunk(2, dim=-1)
    cos, sin = cos_SP.unsqueeze(-2), sin_SP.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class BlockTriangularAttention:
    """`Attend` for training: chunk i, clean or noisy, sees the clean chunks before it and itself."""

    def __init__(self, rope: GridRotary, num_chunks: int, chunk_tokens: int, device: torch.device) -> None:
        self.num_chunks, self.chunk_tokens = num_chunks, chunk_tokens
        tables = rope.tables(0, num_chunks * chunk_tokens)
        # Positions of the clean chunks 0 ... I-2 followed by those of the noisy chunks 0 ... I-1.
        self.cos, self.sin = (torch.cat([table[: -chunk_tokens or None], table]).to(device) for table in tables)
        if num_chunks == 1:
            self.cos, self.sin = (table.to(device) for table in tables)

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        cos, sin = self.cos.to(q_THD.dtype), self.sin.to(q_THD.dtype)
        shape = (-1, len(cos), *q_THD.shape[1:])
        q = rotated(q_THD.view(shape), cos, sin).transpose(1, 2).contiguous()
        k = rotated(k_THD.view(shape), cos, sin).transpose(1, 2).contiguous()
        v = v_THD.view(shape).transpose(1, 2).contiguous()
        size, num_clean = self.chunk_tokens, (self.num_chunks - 1) * self.chunk_tokens
        clean, noisy = [], []
        for start in range(0, num_clean + size, size):
            end = start + size
            own = slice(num_clean + start, num_clean + end)
            if start < num_clean:
                clean.append(plain_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end]))
            keys = torch.cat([k[:, :, :start], k[:, :, own]], dim=2)
            values = torch.cat([v[:, :, :start], v[:, :, own]], dim=2)
            noisy.append(plain_attention(q[:, :, own], keys, values))
        return torch.cat(clean + noisy, dim=2).transpose(1, 2).reshape(q_THD.shape)


def draw_levels(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1], float32: evenly spread over the batch, then shifted towards 1."""
    count = shape[0] * shape[1]
    even = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    even = 1 - even.view(shape)
    return LEVEL_SHIFT * even / (1 + (LEVEL_SHIFT - 1) * even)


def batch_loss(model: Transformer, rope: GridRotary, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(loss to minimise, mean weighted squared error of the clean latents by chunk position [I])."""
    clean = batch.clean_BISC
    num_clips, num_chunks, size, channels = clean.shape
    levels_BI = draw_levels((num_clips, num_chunks), generator).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    t = levels_BI[:, :, None, None]
    noisy = (1 - t) * clean + t * noise
    strength = HISTORY_NOISE * torch.rand(num_clips, num_chunks - 1, 1, 1, generator=generator)
    strength = strength * (torch.rand(num_clips, 1, 1, 1, generator=generator) < 0.5)
    history_noise = torch.randn(num_clips, num_chunks - 1, size, channels, generator=generator)
    history = clean[:, :-1] + (strength * history_noise).to(clean.device)
    levels = torch.cat([torch.zeros_like(levels_BI[:, :-1]), levels_BI], dim=1)
    packed = torch.cat([history, noisy], dim=1)
    attend = BlockTriangularAttention(rope, num_chunks, size, clean.device)
    prediction = model(packed.reshape(-1, channels), levels.reshape(-1), model.canvas(batch.slots_BK), attend)
    prediction = prediction.view(packed.shape)[:, num_chunks - 1 :].float()
    error_BI = (batch.weight_BISC * (prediction - clean).square()).mean(dim=(2, 3))
    loss = (error_BI / levels_BI.clamp(min=SMALLEST_LEVEL).square()).mean()
    return loss, error_BI.mean(dim=0).detach()
