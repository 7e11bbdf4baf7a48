"""What stored keys and values do to attention: output error, shift of the cached mass, shift of log Z, under every
correction, for one `Sample` and one `Scheme`.

off         nothing is subtracted
formula     b of quant/correction.py from the steps; NaN for a scheme whose levels are not uniform
variance    b = scale^2 / 2 * sum_c q_c^2 (Var k'_c - Var k_c) with the variances over a chunk's tokens
measured    alpha * b, alpha fitted on the queries of the commit pass; b is the formula's, or else the variance's

Axes: C cached chunks, H heads, T tokens of a chunk, Q queries looked at, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peers.stored import Stored
from schemes import Scheme
from tensors import Sample
from torch import Tensor

from pagedvid.quant.correction import bias, fit_alpha, log_mass_shift
from pagedvid.quant.rotary import pair_mean_square

QUERY_STRIDE = 4
"""Every so many queries of a forward, and of a commit pass, are looked at."""
CORRECTIONS = ("off", "formula", "variance", "measured")


@dataclass(frozen=True)
class StoredSample:
    """A sample's history as it comes back from storage."""

    k_CHTD: Tensor
    """After rotary embedding."""
    v_CHTD: Tensor
    key_bits: float
    value_bits: float
    variance_change_CHD: Tensor
    """In the domain of the stored keys: channels after rotary embedding if `keys_rotated`, before it otherwise."""
    step_square_CHD: Tensor | None
    keys_rotated: bool


def store(scheme: Scheme, sample: Sample) -> StoredSample:
    """All cached chunks of a sample through a scheme."""
    rotated = torch.stack([sample.rotated(k, chunk) for chunk, k in enumerate(sample.k_CHTD)])
    exact = rotated if scheme.keys_rotated else sample.k_CHTD
    keys = _store(scheme.keys, exact, sample.layer, scheme.whole_span)
    values = _store(scheme.values, sample.v_CHTD, sample.layer, scheme.whole_span)
    k = torch.stack([part.values_HnD for part in keys])
    change = k.var(2, correction=0) - exact.var(2, correction=0)
    steps = [part.step_square_HD for part in keys]
    return StoredSample(
        k if scheme.keys_rotated else torch.stack([sample.rotated(x, chunk) for chunk, x in enumerate(k)]),
        torch.stack([part.values_HnD for part in values]),
        sum(part.bits for part in keys) / len(keys),
        sum(part.bits for part in values) / len(values),
        change,
        None if None in steps else torch.stack([step for step in steps if step is not None]),
        scheme.keys_rotated,
    )


def measure(sample: Sample, stored: StoredSample, number: int) -> Mapping[str, Mapping[str, Tensor]]:
    """By correction: "error" of the output, relative (also with stored keys or stored values only, "error of keys" and
    "error of values"), "dP" and "dlogZ"; each [H], for the queries of one forward."""
    scale = sample.k_CHTD.shape[-1] ** -0.5
    q = sample.rotated(sample.q_LHTD[number], -1)[:, ::QUERY_STRIDE]
    exact_k = torch.stack([sample.rotated(k, chunk) for chunk, k in enumerate(sample.k_CHTD)])
    attend = _Reader(q, sample.rotated(sample.current_k_LHTD[number], -1), sample.current_v_LHTD[number], scale)
    exact = attend(exact_k, sample.v_CHTD, None)
    error_of_values = _relative(attend(exact_k, stored.v_CHTD, None)[0], exact[0])
    results = {}
    for correction in CORRECTIONS:
        shift = _shifts(sample, stored, exact_k, q, correction, scale)
        if correction != "off" and shift is None:
            continue
        got = attend(stored.k_CHTD, stored.v_CHTD, shift)
        results[correction] = {
            "error": _relative(got[0], exact[0]),
            "error of keys": _relative(attend(stored.k_CHTD, sample.v_CHTD, shift)[0], exact[0]),
            "error of values": error_of_values,
            "dP": (got[1] - exact[1]).mean(-1),
            "dlogZ": (got[2] - exact[2]).mean(-1),
        }
    return results


@dataclass(frozen=True)
class _Reader:
    """Attention of rotated queries over cached chunks and the current one: (output, cached mass, cached log Z)."""

    q_HQD: Tensor
    current_k_HTD: Tensor
    current_v_HTD: Tensor
    scale: float

    def __call__(self, k_CHTD: Tensor, v_CHTD: Tensor, shift_CHQ: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.q_HQD * self.scale @ k_CHTD.mT  # [C, H, Q, T]
        if shift_CHQ is not None:
            scores = scores - shift_CHQ[..., None]
        cached = torch.cat(list(scores), dim=-1)
        current = self.q_HQD * self.scale @ self.current_k_HTD.mT
        weights = torch.cat([cached, current], dim=-1).softmax(-1)
        out = weights @ torch.cat([*v_CHTD, self.current_v_HTD], dim=1)
        return out, weights[..., : cached.shape[-1]].sum(-1), cached.logsumexp(-1)


def _store(function: object, x_CHTD: Tensor, layer: int, whole_span: bool) -> list[Stored]:
    if not whole_span:
        return [function(x, layer) for x in x_CHTD]  # type: ignore[operator]
    stored = function(torch.cat(list(x_CHTD), dim=1), layer)  # type: ignore[operator]
    return [Stored(part, stored.bits, None) for part in stored.values_HnD.chunk(len(x_CHTD), dim=1)]


def _shifts(
    sample: Sample, stored: StoredSample, exact_k: Tensor, q: Tensor, correction: str, scale: float
) -> Tensor | None:
    """What is subtracted from the scores, [C, H, Q]; None for nothing or not defined."""
    if correction == "off" or (correction == "formula" and stored.step_square_CHD is None):
        return None
    by_steps = stored.step_square_CHD is not None and correction != "variance"

    def b(query: Tensor) -> Tensor:
        square = query.square() if stored.keys_rotated else pair_mean_square(query)
        if by_steps:
            return torch.stack([bias(square, step, scale) for step in stored.step_square_CHD])  # type: ignore[union-attr]
        return torch.stack([square @ change[..., None] for change in stored.variance_change_CHD])[..., 0] * scale**2 / 2

    if correction != "measured":
        return b(q)
    alphas = []
    for chunk, k in enumerate(exact_k):
        own_q = sample.rotated(sample.commit_q_CHTD[chunk], chunk)[:, ::QUERY_STRIDE]
        alphas.append(fit_alpha(log_mass_shift(own_q, k, stored.k_CHTD[chunk], scale), b(own_q)[chunk]))
    return b(q) * torch.stack(alphas)[..., None]


def _relative(got_HQD: Tensor, exact_HQD: Tensor) -> Tensor:
    return (got_HQD - exact_HQD).flatten(1).norm(dim=1) / exact_HQD.flatten(1).norm(dim=1)
