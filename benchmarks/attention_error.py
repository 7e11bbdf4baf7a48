"""What stored keys and values do to attention: output error, shift of the cached mass, shift of log Z, under every
correction (corrections.py), for one `Sample` and one `Scheme`.

Axes: C cached chunks, H heads, T tokens of a chunk, Q queries looked at, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from corrections import CORRECTIONS, NEED_STEPS, Correction, Readout, StoredSample
from peers.stored import Stored
from schemes import Scheme
from tensors import Sample

QUERY_STRIDE = 4
"""Every so many queries of a forward are looked at."""


def store(scheme: Scheme, sample: Sample) -> Readout:
    """All cached chunks of a sample through a scheme."""
    rotated = _rotated(sample, sample.k_CHTD)
    exact = rotated if scheme.keys_rotated else sample.k_CHTD
    keys, values = _store(scheme, "keys", sample.layer, exact), _store(scheme, "values", sample.layer, sample.v_CHTD)
    k = torch.stack([part.values_HnD for part in keys])
    steps = [part.step_square_HnD for part in keys if part.step_square_HnD is not None]
    stored = StoredSample(
        k if scheme.keys_rotated else _rotated(sample, k),
        torch.stack([part.values_HnD for part in values]),
        sum(part.bits for part in keys) / len(keys),
        sum(part.bits for part in values) / len(values),
        k.var(2, correction=0) - exact.var(2, correction=0),
        torch.stack(steps) if steps else None,
        keys[0].axes_DD,
        scheme.keys_rotated,
    )
    return Readout(sample, stored, rotated)


def measure(
    readout: Readout, number: int, corrections: Mapping[str, Correction] = CORRECTIONS
) -> dict[str, dict[str, Tensor]]:
    """By correction, "off" first: the relative "error" of the output, "dP" and "dlogZ", each [H], for the queries of
    one forward. Uncorrected also "error of keys", with exact values, and "error of values", with exact keys."""
    sample, stored = readout.sample, readout.stored
    q = sample.rotated(sample.q_LHTD[number], -1)[:, ::QUERY_STRIDE]
    current = sample.rotated(sample.current_k_LHTD[number], -1), sample.current_v_LHTD[number]
    attend = _Reader(q, *current, readout.scale)
    exact = attend(readout.exact_k_CHTD, sample.v_CHTD)
    results = {}
    for name, shift in _shifts(readout, q, corrections).items():
        got = attend(stored.k_CHTD, stored.v_CHTD, shift)
        results[name] = {
            "error": _relative(got[0], exact[0]),
            "dP": (got[1] - exact[1]).mean(-1),
            "dlogZ": (got[2] - exact[2]).mean(-1),
        }
    results["off"]["error of keys"] = _relative(attend(stored.k_CHTD, sample.v_CHTD)[0], exact[0])
    results["off"]["error of values"] = _relative(attend(readout.exact_k_CHTD, stored.v_CHTD)[0], exact[0])
    return results


def _shifts(readout: Readout, q: Tensor, corrections: Mapping[str, Correction]) -> dict[str, Tensor | None]:
    has_step_sizes = readout.stored.step_square_CHTD is not None
    defined = {name: correct for name, correct in corrections.items() if has_step_sizes or name not in NEED_STEPS}
    return {"off": None, **{name: correct(readout, q) for name, correct in defined.items()}}


@dataclass(frozen=True)
class _Reader:
    """Attention of rotated queries over cached chunks and the current one: (output, cached mass, cached log Z)."""

    q_HQD: Tensor
    current_k_HTD: Tensor
    current_v_HTD: Tensor
    scale: float

    def __call__(
        self, k_CHTD: Tensor, v_CHTD: Tensor, shift_CHQT: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.q_HQD * self.scale @ k_CHTD.mT  # [C, H, Q, T]
        if shift_CHQT is not None:
            scores = scores - shift_CHQT
        cached = torch.cat(list(scores), dim=-1)
        current = self.q_HQD * self.scale @ self.current_k_HTD.mT
        weights = torch.cat([cached, current], dim=-1).softmax(-1)
        out = weights @ torch.cat([*v_CHTD, self.current_v_HTD], dim=1)
        return out, weights[..., : cached.shape[-1]].sum(-1), cached.logsumexp(-1)


def _rotated(sample: Sample, k_CHTD: Tensor) -> Tensor:
    return torch.stack([sample.rotated(k, chunk) for chunk, k in enumerate(k_CHTD)])


def _store(scheme: Scheme, kind: str, layer: int, x_CHTD: Tensor) -> list[Stored]:
    if not scheme.whole_span:
        return [scheme.store(kind, layer, x) for x in x_CHTD]
    stored = scheme.store(kind, layer, torch.cat(list(x_CHTD), dim=1))
    return [Stored(part, stored.bits) for part in stored.values_HnD.chunk(len(x_CHTD), dim=1)]


def _relative(got_HQD: Tensor, exact_HQD: Tensor) -> Tensor:
    return (got_HQD - exact_HQD).flatten(1).norm(dim=1) / exact_HQD.flatten(1).norm(dim=1)
