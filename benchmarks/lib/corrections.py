"""Corrections to compare: what each subtracts from the scores of stored keys. pagedvid/correction/formula.py defines b.

formula     b as the package takes it: second order, channels with a large x in the exact form, step sizes averaged over
            a chunk
paper       second order throughout        exact       the exact form throughout
per key     b of each key's own step sizes; a kernel would add one column to the scores per channel group
per page    b of the mean square step sizes of each page
variance    b from Var k' - Var k over a chunk's tokens
measured    alpha * b, alpha as the package fits it to queries of the commit pass; b is the formula's, or the variance's
            where levels are not uniform
log Z       the same with alpha as earlier versions fitted it: least squares on the shift of log Z itself over the same
            queries, each query's own token among the keys

Multiply-adds for one query and one chunk: T * G per key (G channel groups), D per page, D per chunk. `measured` takes
one more and, at commit, three score matrices of the sampled queries.

Axes: C cached chunks, H heads, T tokens of a chunk, Q queries, D head_dim. Shifts are [C, H, Q, 1] or [C, H, Q, T].
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lib.samples import Sample
from pagedvid.attention.measure import MEASURED_QUERIES
from pagedvid.correction.fit import SMALLEST, fit_alpha, log_mass, log_mass_shift, reader_log_odds
from pagedvid.correction.formula import (
    QuerySquares,
    bias,
    exact_bias,
    log_sinhc,
    second_order_bias,
)


@dataclass(frozen=True)
class StoredSample:
    """A sample's cached chunks as they come back from storage."""

    k_CHTD: Tensor
    """After rotary embedding."""
    v_CHTD: Tensor
    key_bits: float
    value_bits: float
    variance_change_CHD: Tensor
    """Var k' - Var k by channel, after rotary embedding if `keys_rotated`, otherwise before it."""
    square_step_size_CHTD: Tensor | None
    """Along `axes_DD`; None where levels are not uniform."""
    axes_DD: Tensor | None
    keys_rotated: bool


@dataclass(frozen=True)
class Readout:
    """A stored sample, and what a correction may know of it."""

    sample: Sample
    stored: StoredSample
    exact_k_CHTD: Tensor
    """After rotary embedding."""

    @property
    def scale(self) -> float:
        """Softmax scale."""
        return float(self.exact_k_CHTD.shape[-1] ** -0.5)

    def squares(self, q_HQD: Tensor) -> Tensor:
        """Squares of rotated queries along the directions of the step sizes."""
        return QuerySquares(q_HQD).along(self.stored.axes_DD, not self.stored.keys_rotated)

    def square_step_sizes(self) -> Tensor:
        """[C, H, T, D]; only where levels are uniform."""
        assert self.stored.square_step_size_CHTD is not None
        return self.stored.square_step_size_CHTD


Correction = Callable[[Readout, Tensor], Tensor]
"""Shifts for rotated queries [H, Q, D] of the chunk after the cached ones."""


def by_chunk(function: Callable[[Tensor, Tensor, float], Tensor], readout: Readout, q_HQD: Tensor) -> Tensor:
    """b of the mean square step sizes of each chunk, in the form of `function`."""
    square = readout.squares(q_HQD)
    return torch.stack([function(square, chunk.mean(1), readout.scale) for chunk in readout.square_step_sizes()])[
        ..., None
    ]


def by_page(page_tokens: int, readout: Readout, q_HQD: Tensor) -> Tensor:
    """b of the mean square step sizes of each page of a chunk."""
    square = readout.squares(q_HQD)
    return torch.stack(
        [
            torch.cat(
                [
                    second_order_bias(square, page.mean(1), readout.scale)[..., None].expand(-1, -1, page.shape[1])
                    for page in chunk.split(page_tokens, dim=1)
                ],
                dim=-1,
            )
            for chunk in readout.square_step_sizes()
        ]
    )


def by_key(readout: Readout, q_HQD: Tensor) -> Tensor:
    """b of each key's own step sizes, second order, as in the paper."""
    return readout.squares(q_HQD) @ readout.square_step_sizes().mT * (readout.scale**2 / 24)


def by_key_exact(readout: Readout, q_HQD: Tensor) -> Tensor:
    """The same in the exact form, which no product of rank G can express."""
    x_CHQTD = readout.squares(q_HQD).sqrt()[..., None, :] * readout.square_step_sizes().sqrt()[:, :, None]
    return log_sinhc(x_CHQTD * (readout.scale / 2)).sum(-1)


def by_variance(readout: Readout, q_HQD: Tensor) -> Tensor:
    """b of the change of variance."""
    square = QuerySquares(q_HQD).along(None, not readout.stored.keys_rotated)
    changes = readout.stored.variance_change_CHD
    return torch.stack([bias(square, 12 * change, readout.scale) for change in changes])[..., None]


def measured(readout: Readout, q_HQD: Tensor, num_queries: int = MEASURED_QUERIES, log_z: bool = False) -> Tensor:
    """alpha * b, one alpha for each chunk and head, as a commit pass fits it; `log_z`: as earlier versions did."""
    predicted = by_variance if readout.stored.square_step_size_CHTD is None else formula
    fit = _log_z_alpha if log_z else _alpha
    alphas = []
    for chunk, commit_q in enumerate(readout.sample.commit_q_CHTD):
        count = min(num_queries, commit_q.shape[1])
        sampled = torch.arange(count) * (commit_q.shape[1] - 1) // max(1, count - 1)
        reading = readout.sample.rotated(commit_q, chunk + 1)[:, sampled]
        here = readout.sample.rotated(commit_q, chunk)[:, sampled]
        alphas.append(fit(readout, chunk, here, reading, sampled, predicted(readout, reading)[chunk, ..., 0]))
    return predicted(readout, q_HQD) * torch.stack(alphas)[..., None, None]


def _alpha(readout: Readout, chunk: int, here: Tensor, reading: Tensor, own: Tensor, b: Tensor) -> Tensor:
    exact, stored, scale = readout.exact_k_CHTD[chunk], readout.stored.k_CHTD[chunk], readout.scale
    before = log_mass(reading, exact, scale, own)
    shift = log_mass(reading, stored, scale, own) - before
    return fit_alpha(reader_log_odds(before, log_mass(here, exact, scale)), shift, b)


def _log_z_alpha(readout: Readout, chunk: int, here: Tensor, reading: Tensor, own: Tensor, b: Tensor) -> Tensor:
    shift = log_mass_shift(reading, readout.exact_k_CHTD[chunk], readout.stored.k_CHTD[chunk], readout.scale)
    return (shift * b).sum(-1) / b.square().sum(-1).clamp(min=SMALLEST)


formula: Correction = partial(by_chunk, bias)
CORRECTIONS: dict[str, Correction] = {
    "formula": formula,
    "exact": partial(by_chunk, exact_bias),
    "variance": by_variance,
    "measured": measured,
    "log Z": partial(measured, log_z=True),
}
"""Columns of the tables, next to "off"."""
NEED_STEP_SIZES = ("formula", "exact")


def factored(factor: float) -> Correction:
    """The formula's b times `factor`."""
    return lambda readout, q_HQD: factor * formula(readout, q_HQD)


def granularities(page_tokens: int) -> dict[str, Correction]:
    """The formula in every form and granularity."""
    return {
        "per key, paper": by_key,
        "per key, exact": by_key_exact,
        f"per page of {page_tokens}, paper": partial(by_page, page_tokens),
        "per chunk, paper": partial(by_chunk, second_order_bias),
        "per chunk, exact": partial(by_chunk, exact_bias),
        "per chunk, formula": formula,
    }


def samplings(counts: Sequence[int]) -> dict[str, Correction]:
    """`measured` and `log Z`, fitted to each number of queries of a commit pass, and to all."""
    by_name: dict[str, int] = {str(count): count for count in counts} | {"all": sys.maxsize}
    own: dict[str, Correction] = {f"measured, {name}": partial(measured, num_queries=by_name[name]) for name in by_name}
    return own | {f"log Z, {name}": partial(measured, num_queries=by_name[name], log_z=True) for name in by_name}
