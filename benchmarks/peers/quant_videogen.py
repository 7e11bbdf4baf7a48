"""Quant-VideoGen's progressive residual quantization (arXiv 2602.02958).

k-means clusters the tokens, and each token is replaced by its difference to the nearest centroid, stage after stage.
The last residual is rounded in blocks of channels.

QVG: one stage, blocks of 64; QVG-Pro: four stages, blocks of 16. "ternary" is the published 2-bit grid {-1, 0, 1} with
an FP8 E4M3 step size; "asymmetric" is the later one with four levels and an FP8 zero point. Bits count codes, step
sizes, zero points, cluster ids (8 bits) and centroids: in 16 bits, to its favour (the published code has fp32).
"""

from __future__ import annotations

import torch
from torch import Tensor

from peers import Stored

MAX_ROUNDS = 100
CENTROID_BITS = 16
START_SEED = 0
SMALLEST_STEP_SIZE = 1e-10


def quant_videogen(x_HnD: Tensor, num_stages: int, block: int, grid: str, num_clusters: int = 256) -> Stored:
    """Two bits. The ternary grid shrinks values towards zero, so no step size is reported."""
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
    """(centroids [H, num_clusters, D], cluster of every token [H, n]) by Lloyd's algorithm from random tokens."""
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
    step_size = _fp8(blocks.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_STEP_SIZE))
    return ((blocks / step_size.where(step_size > 0, 1.0)).round().clamp(-1, 1) * step_size).flatten(-2)


def _asymmetric(x: Tensor, block: int) -> Tensor:
    blocks = x.unflatten(-1, (-1, block))
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    zero_point, step_size = _fp8(low), _fp8(((high - low) / 3).clamp(min=SMALLEST_STEP_SIZE))
    codes = ((blocks - zero_point) / step_size.where(step_size > 0, 1.0)).round().clamp(0, 3)
    return (codes * step_size + zero_point).flatten(-2)


def _fp8(x: Tensor) -> Tensor:
    """Rounds to FP8 E4M3; magnitudes above its largest, 448, saturate."""
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
