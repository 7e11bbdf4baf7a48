"""Quant-VideoGen's progressive residual quantization (arXiv 2602.02958): tokens are clustered by k-means and replaced
by what is left beside their centroid, stage after stage; the last residual is rounded in blocks of channels.

QVG: one stage, blocks of 64; QVG-Pro: four stages, blocks of 16. "ternary" is the published 2-bit grid {-1, 0, 1} with
an FP8 E4M3 scale; "asymmetric" the later four-level one with an FP8 zero. Bits count codes, scales, zeros, cluster ids
(8 bits) and centroids, generously in 16 bits (the published code keeps them in fp32).
"""

from __future__ import annotations

import torch
from torch import Tensor

from peers.stored import Stored

MAX_ROUNDS = 100
CENTROID_BITS = 16
START_SEED = 0
SMALLEST_SCALE = 1e-10


def quant_videogen(x_HnD: Tensor, num_stages: int, block: int, grid: str, num_clusters: int = 256) -> Stored:
    """Two bits. Levels of the ternary grid shrink values towards zero, so no step is reported."""
    if grid not in ("ternary", "asymmetric"):
        raise ValueError(f"grid is {grid!r}; allowed are 'ternary' and 'asymmetric'")
    _, num_tokens, head_dim = x_HnD.shape
    residual, explained = x_HnD, torch.zeros_like(x_HnD)
    for _ in range(num_stages):
        centroids, ids = k_means(residual, num_clusters)
        nearest = centroids.half().float().gather(1, ids[..., None].expand_as(residual))
        residual, explained = residual - nearest, explained + nearest
    rounded = _ternary(residual, block) if grid == "ternary" else _asymmetric(residual, block)
    block_bits = 8 if grid == "ternary" else 16
    stage_bits = 8 / head_dim + CENTROID_BITS * num_clusters / num_tokens
    return Stored(explained + rounded, 2 + block_bits / block + num_stages * stage_bits)


def k_means(x_HnD: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """(centroids [H, num_clusters, D], cluster of every token [H, n]) by Lloyd's rounds from random tokens."""
    num_tokens = x_HnD.shape[1]
    start = torch.randperm(num_tokens, generator=torch.Generator().manual_seed(START_SEED))[:num_clusters]
    centroids, ids = x_HnD[:, start].clone(), None
    for _ in range(MAX_ROUNDS):
        new_ids = torch.cdist(x_HnD, centroids).argmin(-1)
        if ids is not None and torch.equal(new_ids, ids):
            break
        ids = new_ids
        count = torch.zeros(centroids.shape[:2]).scatter_add_(1, ids, torch.ones(ids.shape))[..., None]
        total = torch.zeros_like(centroids).scatter_add_(1, ids[..., None].expand_as(x_HnD), x_HnD)
        centroids = torch.where(count > 0, total / count.clamp(min=1), centroids)
    assert ids is not None  # MAX_ROUNDS is positive
    return centroids, ids


def _ternary(x: Tensor, block: int) -> Tensor:
    blocks = x.unflatten(-1, (-1, block))
    scale = _fp8(blocks.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_SCALE))
    return ((blocks / scale.where(scale > 0, 1.0)).round().clamp(-1, 1) * scale).flatten(-2)


def _asymmetric(x: Tensor, block: int) -> Tensor:
    blocks = x.unflatten(-1, (-1, block))
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    zero, scale = _fp8(low), _fp8(((high - low) / 3).clamp(min=SMALLEST_SCALE))
    return (((blocks - zero) / scale.where(scale > 0, 1.0)).round().clamp(0, 3) * scale + zero).flatten(-2)


def _fp8(x: Tensor) -> Tensor:
    """Through E4M3 and back; magnitudes beyond its 448 saturate."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
