"""What a projective view of `step.attend` must return, from its definition: k and v of every token mapped one by one.

float64, from the bytes of the pages; nothing of the package's pulled-back queries, grouping or decoding is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import RangePlan
from pagedvid.correction.formula import bias, log_sinhc
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import read_head, stored_as


@dataclass(frozen=True)
class SeededProjection:
    """A tag is (seed, number of frames)."""

    tokens_per_frame: int
    layout: str = "half"

    def maps(self, tag: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Rotations with focal lengths and a distant world origin: far from orthogonal."""
        seed, num_frames = tag
        generator = torch.Generator().manual_seed(seed)
        rotation, _ = torch.linalg.qr(torch.randn(num_frames, 3, 3, generator=generator, dtype=torch.float64))
        forward = torch.eye(4, dtype=torch.float64).repeat(num_frames, 1, 1)
        forward[:, :3, :3] = rotation * torch.tensor([1.3, 0.8, 1.0], dtype=torch.float64)[:, None]
        forward[:, :3, 3] = 0.5 * torch.randn(num_frames, 3, generator=generator, dtype=torch.float64)
        return forward, torch.linalg.inv(forward)


def mapped(x_nHD: Tensor, matrices_F44: Tensor, tokens_per_frame: int) -> Tensor:
    """float64; every four consecutive channels of token n by the matrix of its frame."""
    per_token = matrices_F44.repeat_interleave(tokens_per_frame, dim=0)
    return torch.einsum("nij,nhgj->nhgi", per_token, x_nHD.double().unflatten(-1, (-1, 4))).flatten(-2)


def model_order(x: Tensor, layout: str) -> Tensor:
    """Channels of a page back in the order of the model."""
    return x if layout == "half" else torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


Scored = tuple[Tensor, Tensor, Tensor | None]
"""Mapped keys and values [n, D] and the bias [T, n] of their scores."""


def expected_projection(
    cache: PagedKVCache,
    step: Step,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: SeededProjection,
    context: Sequence[tuple[Tensor, Tensor] | None] = (),
    *,
    kind: str = "per frame",
) -> Tensor:
    """[T, Hq, D] float64.

    `kind` of correction: "per frame" (mean of its keys' squared step sizes), "per key" (each with its own step sizes
    and the exact bias), "query as it is" (wrong: not pulled back to the frame), "uncorrected".
    """
    spec, size = cache.spec, projection.tokens_per_frame
    group = spec.query_heads // spec.num_kv_heads
    out = torch.empty(q.shape, dtype=torch.float64)
    for number, range_ in enumerate(step.plan.ranges):
        forward, _ = projection.maps(range_.tag)
        q_p = mapped(q[range_.start : range_.stop], forward.mT, size)
        for head in range(spec.num_kv_heads):
            heads = slice(head * group, (head + 1) * group)
            rows = q_p[:, heads].transpose(0, 1).flatten(0, 1)
            sources = [_current(step.plan.ranges[seen], k, v, head, projection) for seen in range_.current]
            for read in range_.reads:
                if stored_as(read.chunk, "keys", layer, head) is not None:
                    sources.append(_stored(cache, layer, read.chunk, head, rows, projection, kind))
            if context and (pair := context[number]) is not None:
                sources.append((pair[0][:, head].double(), pair[1][:, head].double(), None))
            attended = attention(rows, sources, spec.scale).unflatten(0, (group, -1)).transpose(0, 1)
            out[range_.start : range_.stop, heads] = mapped(attended, forward, size)
    return out


def attention(q_TD: Tensor, sources: Sequence[Scored], scale: float) -> Tensor:
    """[T, D]."""
    scores = torch.cat([scale * q_TD @ k.T - (0 if b is None else b) for k, _, b in sources], dim=1)
    return torch.softmax(scores, dim=1) @ torch.cat([v for _, v, _ in sources])


def _current(seen: RangePlan, k: Tensor, v: Tensor, head: int, projection: SeededProjection) -> Scored:
    inverse = projection.maps(seen.tag)[1]
    own = (x[seen.start : seen.stop, head : head + 1] for x in (k, v))
    k_p, v_p = (mapped(x, inverse, projection.tokens_per_frame)[:, 0] for x in own)
    return k_p, v_p, None


def _stored(
    cache: PagedKVCache, layer: int, chunk: Chunk, head: int, rows: Tensor, projection: SeededProjection, kind: str
) -> Scored:
    size, scale = projection.tokens_per_frame, cache.spec.scale
    k_nD, v_nD, step_size_nD = read_head(cache, chunk, layer, head)
    inverse = projection.maps(chunk.tag)[1]
    k = model_order(k_nD, projection.layout)
    k_p, v_p = (mapped(x.unsqueeze(1), inverse, size)[:, 0] for x in (k, v_nD))
    if step_size_nD is None or cache.spec.correction == "off" or kind == "uncorrected":
        return k_p, v_p, None
    step_size, biases = model_order(step_size_nD, projection.layout), []
    for frame, matrix in enumerate(inverse):
        seen = torch.eye(4).double() if kind == "query as it is" else matrix
        pulled = torch.einsum("ij,tgi->tgj", seen, rows.unflatten(-1, (-1, 4))).flatten(-2)
        of_frame = step_size[frame * size : (frame + 1) * size]
        if kind == "per key":
            biases.append(log_sinhc(scale * pulled.abs().unsqueeze(1) * of_frame / 2).sum(-1))
        else:
            biases.append(bias(pulled.square(), of_frame.square().mean(0), scale).unsqueeze(1).expand(-1, size))
    alpha = float(chunk.alpha[layer, head]) if cache.spec.correction == "measured" else 1.0
    return k_p, v_p, alpha * torch.cat(biases, dim=1)
