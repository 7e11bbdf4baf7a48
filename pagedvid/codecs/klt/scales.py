"""The scales of a klt page: the log2 in 8 bits for each channel direction, the best of a few candidates.

The best candidate has the least error. One of them always covers the largest coefficient, so that an outlier costs no
more than it would without clipping.

Axes: S candidates; E chunks; h KV heads; P pages; D directions; F frames of a block; b blocks of a page; K coded
coefficients, in units of their expected deviations.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from pagedvid.codecs.klt.coding import KltCoding
from pagedvid.codecs.klt.levels import likely_miss_

SCALE_ONE = 128
"""Scale byte of 1.0."""
SCALES_PER_OCTAVE = 4
"""Scale bytes per factor of two."""
OFFSETS = (-1, 0, 1)
"""Scale bytes tried, relative to the scale byte of the page's root mean square."""
SMALLEST_SCALE = 2.0 ** (-SCALE_ONE / SCALES_PER_OCTAVE)


def choose_scales(coding: KltCoding, normal_EhPKb: Tensor) -> Tensor:
    """Scale bytes, whole numbers in float32 [E, h, P, D], for the coded coefficients of pages."""
    weight_h1K = coding.deviation_h1K.square()
    energy_EhPD = _sum_of_directions(coding, normal_EhPKb.square().sum(-1).mul_(weight_h1K))
    expected_h1D = _sum_of_directions(coding, weight_h1K * normal_EhPKb.shape[-1])
    middle = _scale_bytes(energy_EhPD.div_(expected_h1D.clamp(min=torch.finfo(torch.float32).tiny)).sqrt_()).round_()
    peak_EhPK = normal_EhPKb.abs().amax(-1).div_(coding.reach_K)
    covering = _scale_bytes(_by_direction(coding, peak_EhPK).amax(-2)).ceil_()
    candidates_SEhPD = torch.stack([*(middle + offset for offset in OFFSETS), covering]).clamp_(0, 255)
    scales_SEhPK = coded_scales(coding, scales(candidates_SEhPD))
    scaled_SEhPKb = normal_EhPKb / scales_SEhPK[..., None]
    missed_SEhPK = torch.cat(
        [
            likely_miss_(part, width).square_().sum(-1)
            for width, part in zip(coding.segments, split(coding, scaled_SEhPKb), strict=True)
        ],
        dim=-1,
    )
    error_SEhPD = _sum_of_directions(coding, missed_SEhPK.mul_(scales_SEhPK.square_()).mul_(weight_h1K))
    return candidates_SEhPD.gather(0, error_SEhPD.argmin(0, keepdim=True))[0]


def scales(scale_bytes: Tensor) -> Tensor:
    """The scales of scale bytes, which are given as float32."""
    return torch.exp2((scale_bytes - SCALE_ONE) / SCALES_PER_OCTAVE)


@lru_cache(maxsize=8)
def byte_scales(device: torch.device) -> Tensor:
    """The scale of each byte, float32 [256, 1]."""
    return scales(torch.arange(256, dtype=torch.float32, device=device)).unsqueeze(-1)


def coded_scales(coding: KltCoding, scales_EhPD: Tensor) -> Tensor:
    """The scale of every coded coefficient, [..., h, P, K]."""
    shape = (*scales_EhPD.shape[:-1], coding.num_coded)
    return scales_EhPD.gather(-1, coding.direction_h1K.expand(shape))


def split(coding: KltCoding, x_PKb: Tensor) -> tuple[Tensor, ...]:
    """The coded coefficients [..., K, b] of each width."""
    return x_PKb.split(list(coding.segments.values()), dim=-2)


def _scale_bytes(scale: Tensor) -> Tensor:
    """Scale bytes before rounding; 0 for every scale below that of byte 0. Overwrites `scale`."""
    return scale.clamp_(min=SMALLEST_SCALE).log2_().mul_(SCALES_PER_OCTAVE).add_(SCALE_ONE)


def _sum_of_directions(coding: KltCoding, x_hPK: Tensor) -> Tensor:
    return _by_direction(coding, x_hPK).sum(-2)


def _by_direction(coding: KltCoding, x_hPK: Tensor) -> Tensor:
    """[..., h, P, K] -> [..., h, P, F, D], zero for coefficients that are not coded."""
    padded = torch.nn.functional.pad(x_hPK, (0, 1))
    index = coding.rank_hN[:, None].expand(*padded.shape[:-1], -1)
    return padded.gather(-1, index).unflatten(-1, (len(coding.cosines_FF), -1))
