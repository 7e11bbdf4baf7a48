"""Calibration of `KltCodec` for a model: bases, importance and levels from a few observed layers.

Errors are counted as attention counts them, to first order in the error e of a key or value, with p the attention
weights and o the output of a query:

    keys     output moves by sum_i p_i (s q . e_i) (v_i - o)     channels weighted by E[q q'], queries turned back by
                                                                 each key's rotary angle; tokens by p_i |v_i - o|
    values   output moves by sum_i p_i e_i                       tokens weighted by p_i

Token weights are smooth over time, so in the cosine transform of a block they fall with frequency: errors that
alternate from frame to frame cancel. Their mean square by frequency multiplies the variance when bits are given out.

Axes: C cached chunks, L forwards that read them, H KV heads, T tokens of a chunk, Q sampled queries, D head_dim;
F frames of a block, U blocks, N = F * D coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.geometry import PAGE_ROWS
from pagedvid.quant.allocation import choose_segments, lloyd_max
from pagedvid.quant.blocks import BlockLayout, cosine_transform
from pagedvid.quant.fields import WIDTHS
from pagedvid.quant.klt_tables import KltTables, bits_per_block
from pagedvid.quant.rotary import rotate, unrotate

SAMPLED_QUERIES = 32
"""Queries per forward and head whose attention is looked at, evenly spread."""
SAMPLED_ANGLES = 16
"""Key positions per chunk by whose angles queries are turned back."""
METRIC_FLOOR = 1e-4
"""Directions that queries hardly touch still count this share of the strongest one: later queries may."""
UNIFORM_REACH = 5.0
"""Deviations covered by the 256 uniform levels of width 8."""


@dataclass(frozen=True)
class Observation:
    """One layer of one video, float32, before rotary embedding, half layout."""

    k_CHTD: Tensor
    v_CHTD: Tensor
    q_LHTD: Tensor
    """Queries that read the cached chunks; one per KV head (average over a group first)."""
    current_k_LHTD: Tensor
    current_v_LHTD: Tensor
    cos_CTP: Tensor
    """Rotary tables [C + 1, T, D / 2] of the cached chunks and, last, of the reading one."""
    sin_CTP: Tensor

    def rotated(self, x_HTD: Tensor, chunk: int) -> Tensor:
        """`x` [..., T, D] at the positions of a chunk; -1: the reading one."""
        return rotate(x_HTD, self.cos_CTP[chunk], self.sin_CTP[chunk])

    def attention(self, number: int, stride: int = 1) -> tuple[Tensor, Tensor]:
        """(weights [H, Q, C * T] of the cached tokens, outputs [H, Q, D]) of every stride-th query of a forward."""
        q_HQD = self.rotated(self.q_LHTD[number], -1)[:, ::stride]
        current = self.rotated(self.current_k_LHTD[number], -1)
        keys = [self.rotated(k_HTD, chunk) for chunk, k_HTD in enumerate(self.k_CHTD)]
        scores = q_HQD @ torch.cat([*keys, current], dim=1).mT * q_HQD.shape[-1] ** -0.5
        weights = scores.softmax(-1)
        values = torch.cat([*self.v_CHTD.unbind(0), self.current_v_LHTD[number]], dim=1)
        return weights[..., : -current.shape[1]], weights @ values


@dataclass(frozen=True)
class _Transform:
    """What one layer's keys or values look like after the transform."""

    mean_HD: Tensor
    analysis_HDD: Tensor
    synthesis_HDD: Tensor
    coefficients_HUN: Tensor
    variance_HN: Tensor
    importance_HN: Tensor


def calibrate(
    layers: Sequence[Sequence[Observation]],
    kind: str,
    layout: BlockLayout,
    page_blocks: int,
    page_rows: int = PAGE_ROWS,
) -> list[KltTables]:
    """Tables by layer. `layers[l]` holds the observations of layer l; `kind` is "keys" or "values".

    Raises ConfigError for another kind or for no observations.
    """
    if kind not in ("keys", "values"):
        raise ConfigError(f"kind is {kind!r}; allowed are 'keys' and 'values'")
    if not layers or not all(layers):
        raise ConfigError("a layer has no observations; run the model on at least one prompt")
    transforms = [_fit(observations, kind, layout) for observations in layers]
    importance = torch.cat([transform.importance_HN for transform in transforms])
    segments = choose_segments(
        importance, bits_per_block(importance.shape[-1] // layout.num_frames, page_blocks, page_rows)
    )
    levels = _fit_levels(transforms, segments)
    return [_tables(transform, layout, page_blocks, page_rows, segments, levels) for transform in transforms]


def query_metric(observations: Sequence[Observation]) -> Tensor:
    """E[q q'] as keys before rotary embedding meet it, [H, D, D]."""
    total, count = torch.zeros(()), 0
    for seen in observations:
        stride = max(1, seen.q_LHTD.shape[2] // SAMPLED_QUERIES)
        q_LHQD = seen.rotated(seen.q_LHTD, -1)[:, :, ::stride]
        positions = range(0, seen.cos_CTP.shape[1], max(1, seen.cos_CTP.shape[1] // SAMPLED_ANGLES))
        for chunk in range(len(seen.k_CHTD)):
            for token in positions:
                turned = unrotate(q_LHQD, seen.cos_CTP[chunk, token], seen.sin_CTP[chunk, token])
                total = total + torch.einsum("lhqd,lhqe->hde", turned, turned)
                count += turned.shape[0] * turned.shape[2]
    return total / count


def frequency_weights(observations: Sequence[Observation], kind: str, layout: BlockLayout) -> Tensor:
    """How much an error at each frequency of a block matters, [H, F], mean 1."""
    total = torch.zeros(())
    cosines = cosine_transform(layout.num_frames)
    for seen in observations:
        size = seen.k_CHTD.shape[2]
        for weights_HQn, out_HQD in _attentions(seen):
            for chunk, p_HQT in enumerate(weights_HQn.split(size, dim=-1)):
                weight = p_HQT if kind == "values" else p_HQT * torch.cdist(out_HQD, seen.v_CHTD[chunk])
                blocks_HQUF = weight[..., layout.tokens(size)]
                total = total + (blocks_HQUF @ cosines.T).square().mean((1, 2))
    return total / total.mean(-1, keepdim=True)


def _attentions(seen: Observation) -> Iterator[tuple[Tensor, Tensor]]:
    stride = max(1, seen.q_LHTD.shape[2] // SAMPLED_QUERIES)
    for number in range(len(seen.q_LHTD)):
        yield seen.attention(number, stride)


def _fit(observations: Sequence[Observation], kind: str, layout: BlockLayout) -> _Transform:
    x_NHTD = torch.cat([seen.k_CHTD if kind == "keys" else seen.v_CHTD for seen in observations])
    mean_HD = x_NHTD.mean((0, 2))
    centred = x_NHTD - mean_HD[:, None]
    root_HDD = inverse_HDD = torch.eye(x_NHTD.shape[-1]).expand(x_NHTD.shape[1], -1, -1)
    if kind == "keys":
        root_HDD, inverse_HDD = _square_root(query_metric(observations))
    weighted = centred @ root_HDD
    _, basis_HDD = torch.linalg.eigh(torch.einsum("nhtd,nhte->hde", weighted, weighted))
    analysis_HDD = root_HDD @ basis_HDD
    blocks_NHUFD = (centred @ analysis_HDD)[:, :, layout.tokens(x_NHTD.shape[2])]
    coefficients_HUN = (cosine_transform(layout.num_frames) @ blocks_NHUFD).flatten(-2).transpose(0, 1).flatten(1, 2)
    variance_HN = coefficients_HUN.square().mean(1).clamp(min=1e-12)
    weight_HF = frequency_weights(observations, kind, layout)
    importance_HN = variance_HN * weight_HF.repeat_interleave(x_NHTD.shape[-1], dim=-1)
    return _Transform(mean_HD, analysis_HDD, basis_HDD.mT @ inverse_HDD, coefficients_HUN, variance_HN, importance_HN)


def _square_root(metric_HDD: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, small eigenvalues raised to METRIC_FLOOR of the largest."""
    values, vectors = torch.linalg.eigh(metric_HDD)
    root = values.clamp(min=float(torch.finfo(torch.float32).tiny)).maximum(values[:, -1:] * METRIC_FLOOR).sqrt()
    return (vectors * root[:, None]) @ vectors.mT, (vectors / root[:, None]) @ vectors.mT


def _fit_levels(transforms: Sequence[_Transform], segments: Mapping[int, int]) -> dict[int, Tensor]:
    """Lloyd-Max on all coefficients of a width, in units of their deviation; uniform at width 8."""
    levels = {8: torch.linspace(-UNIFORM_REACH, UNIFORM_REACH, 256)}
    first = segments[8]
    for width in WIDTHS[1:]:
        samples = [_normal(transform, first, segments[width]) for transform in transforms if segments[width]]
        values = torch.cat(samples) if samples else torch.special.ndtri((torch.arange(4096) + 0.5) / 4096)
        fitted = lloyd_max(values[:: max(1, len(values) // 200_000)], 1 << width)
        levels[width] = (fitted - fitted.flip(0)) / 2  # a coefficient and its negative are equally likely
        first += segments[width]
    return levels


def _normal(transform: _Transform, first: int, count: int) -> Tensor:
    order_HN = transform.importance_HN.argsort(dim=-1, descending=True)[:, first : first + count]
    picked = transform.coefficients_HUN.gather(
        -1, order_HN[:, None].expand(-1, transform.coefficients_HUN.shape[1], -1)
    )
    return (picked / transform.variance_HN.gather(-1, order_HN).sqrt()[:, None]).flatten()


def _tables(
    transform: _Transform,
    layout: BlockLayout,
    page_blocks: int,
    page_rows: int,
    segments: Mapping[int, int],
    levels: Mapping[int, Tensor],
) -> KltTables:
    order_HN = transform.importance_HN.argsort(dim=-1, descending=True)
    deviation_HN = transform.variance_HN.gather(-1, order_HN).sqrt()
    return KltTables(
        layout,
        page_blocks,
        segments,
        levels,
        transform.mean_HD,
        transform.analysis_HDD,
        transform.synthesis_HDD,
        order_HN,
        deviation_HN,
        page_rows,
    )
