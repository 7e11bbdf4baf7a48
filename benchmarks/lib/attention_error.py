"""What storage does to attention, for one `Sample`, one `Scheme` and every correction.

Three quantities: relative error of the output, shift of the attention mass on cached keys, shift of log Z over them.

Axes: C cached chunks, H heads, T tokens of a chunk, Q measured queries, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.corrections import CORRECTIONS, NEED_STEP_SIZES, Correction, Readout, StoredSample
from lib.samples import Sample
from lib.schemes import Scheme
from peers import Stored

QUERY_STRIDE = 4
"""Every fourth query of a forward is measured."""


def store(scheme: Scheme, sample: Sample) -> Readout:
    """Stores all cached chunks of a sample with a scheme."""
    rotated = _rotated(sample, sample.k_CHTD)
    exact = rotated if scheme.keys_rotated else sample.k_CHTD
    keys, values = _store(scheme, "keys", sample.layer, exact), _store(scheme, "values", sample.layer, sample.v_CHTD)
    k = torch.stack([part.values_HnD for part in keys])
    square_step_sizes = [part.square_step_size_HnD for part in keys if part.square_step_size_HnD is not None]
    stored = StoredSample(
        k if scheme.keys_rotated else _rotated(sample, k),
        torch.stack([part.values_HnD for part in values]),
        sum(part.bits for part in keys) / len(keys),
        sum(part.bits for part in values) / len(values),
        k.var(2, correction=0) - exact.var(2, correction=0),
        torch.stack(square_step_sizes) if square_step_sizes else None,
        keys[0].axes_DD,
        scheme.keys_rotated,
    )
    return Readout(sample, stored, rotated)


def measure(
    readout: Readout, number: int, corrections: Mapping[str, Correction] = CORRECTIONS
) -> dict[str, dict[str, Tensor]]:
    """The quantities "error", "dP" and "dlogZ", each [H], by correction ("off" first), for the queries of one forward.

    "off" also has "error of keys", with exact values, and "error of values", with exact keys.
    """
    sample, stored = readout.sample, readout.stored
    attend = _Reader.of(readout, number)
    q = attend.q_HQD
    exact = attend(readout.exact_k_CHTD, sample.v_CHTD)
    results = {}
    for name, shift in _shifts(readout, q, corrections).items():
        got = attend(stored.k_CHTD, stored.v_CHTD, shift)
        results[name] = {
            "error": relative_error(got[0], exact[0]),
            "dP": (got[1] - exact[1]).mean(-1),
            "dlogZ": (got[2] - exact[2]).mean(-1),
        }
    results["off"]["error of keys"] = relative_error(attend(stored.k_CHTD, sample.v_CHTD)[0], exact[0])
    results["off"]["error of values"] = relative_error(attend(readout.exact_k_CHTD, stored.v_CHTD)[0], exact[0])
    return results


def exact_output(readout: Readout, number: int) -> Tensor:
    """Attention of one forward's queries over all chunks as they were before they were stored, [H, Q, D]."""
    return _Reader.of(readout, number)(readout.exact_k_CHTD, readout.sample.v_CHTD)[0]


def _shifts(readout: Readout, q: Tensor, corrections: Mapping[str, Correction]) -> dict[str, Tensor | None]:
    has_step_sizes = readout.stored.square_step_size_CHTD is not None
    defined = {name: correct for name, correct in corrections.items() if has_step_sizes or name not in NEED_STEP_SIZES}
    return {"off": None, **{name: correct(readout, q) for name, correct in defined.items()}}


@dataclass(frozen=True)
class _Reader:
    """Attention of rotated queries over cached chunks and the current one: (output, cached mass, cached log Z)."""

    q_HQD: Tensor
    current_k_HTD: Tensor
    current_v_HTD: Tensor
    scale: float

    @staticmethod
    def of(readout: Readout, number: int) -> _Reader:
        """For the queries of one forward."""
        sample = readout.sample
        q = sample.rotated(sample.q_LHTD[number], -1)[:, ::QUERY_STRIDE]
        current = sample.rotated(sample.current_k_LHTD[number], -1), sample.current_v_LHTD[number]
        return _Reader(q, *current, readout.scale)

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


def relative_error(got_HQD: Tensor, exact_HQD: Tensor) -> Tensor:
    """Norm of the difference over the norm of the exact output, [H]."""
    return (got_HQD - exact_HQD).flatten(1).norm(dim=1) / exact_HQD.flatten(1).norm(dim=1)
