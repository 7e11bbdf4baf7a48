"""Slow float64 attention with the exact correction of every single key: what all backends are tested against.

Each cached key is corrected by its own b = sum_c log(sinh(x_c)/x_c) with x_c = scale |q~_c| delta_c / 2, where q~ is
the query un-rotated by the key's own angle: no mean over a page, no mean over angles, no second-order form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.correction.formula import log_sinhc
from pagedvid.rotary.tables import rotate, unrotate


@dataclass
class Keys:
    """Some keys of one head: k and v [n, D]. k is before rotary embedding if `cos` and `sin` [n, D/2] are given."""

    k: Tensor
    v: Tensor
    step_size: Tensor | None = None
    """Step sizes of each key's page, [n, D]; None: not quantized, not corrected."""
    cos: Tensor | None = None
    sin: Tensor | None = None
    alpha: float = 1.0


def oracle_attention(q_TD: Tensor, sources: Sequence[Keys], scale: float) -> tuple[Tensor, Tensor]:
    """(out [T, D], lse [T]) in float64; `q_TD` is already rotated."""
    q = q_TD.double()
    scores = torch.cat([_scores(q, source, scale) for source in sources], dim=1)
    values = torch.cat([source.v.double() for source in sources], dim=0)
    lse = torch.logsumexp(scores, dim=1)
    return torch.exp(scores - lse[:, None]) @ values, lse


def _scores(q: Tensor, source: Keys, scale: float) -> Tensor:
    k = source.k.double()
    if source.cos is not None and source.sin is not None:
        k = rotate(k, source.cos.double(), source.sin.double())
    scores = scale * q @ k.T
    if source.step_size is None:
        return scores
    return scores - source.alpha * _key_bias(q, source, source.step_size, scale)


def _key_bias(q: Tensor, source: Keys, step_size: Tensor, scale: float) -> Tensor:
    """b [T, n]."""
    seen = q[:, None, :].expand(-1, len(source.k), -1)
    if source.cos is not None and source.sin is not None:
        seen = unrotate(seen, source.cos.double(), source.sin.double())
    return log_sinhc(scale * seen.abs() * step_size.double() / 2).sum(-1)
