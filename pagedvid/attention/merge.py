"""All partials of a layer joined in one pass, with the correction `lse -= alpha * b` inside: the readable reference.

A partial is attention over a subset of the keys: its normalised output `out`, and `lse`, the log-sum-exp of its scores
(natural log, scale included). A lse of -inf means no keys; `out` is then any finite number. On a CPU this is also what
runs. The same in one kernel: attention/kernels/merge.py.

Axes: E ranges, J corrected sequences of a range, V variants of the queries, T queries, H KV heads, Hq query heads, G =
Hq / H, D head_dim. Query head h * G + g belongs to KV head h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.correction.formula import biases

BLOCK_ELEMENTS = 1 << 17
"""Outputs that are summed at once: their float32 sums and one converted partial stay in a core's cache."""


@dataclass(frozen=True)
class BiasTerms:
    """What `lse -= alpha * b` takes, for J corrected sequences of each of E ranges. All tensors are contiguous."""

    square_EJHD: Tensor
    """float32: mean of step_size^2, or 12 (Var k' - Var k), which may be negative; 0: not corrected."""
    alpha_EJH: Tensor | None
    """float32, the measured factor on b; None: 1."""
    variant_J: Tensor
    """int32: which variant of the queries meets the sequence's keys."""
    pairs_J: Tensor
    """int32: 1 where rotary pairs take their mean square, because keys are rotated after storage; else 0."""


def merge(
    own: tuple[Tensor, Tensor],
    others: Sequence[tuple[Tensor, Tensor]],
    out_ETHD: Tensor,
    *,
    bias: BiasTerms | None = None,
    q_EVTHD: Tensor | None = None,
    scale: float = 1.0,
    lse_ETH: Tensor | None = None,
) -> None:
    """Attention over the keys of all partials, written to `out_ETHD` [E, T, Hq, D] in its dtype; sums are float32.

    own: (out [E, T, Hq, D], lse float32 [E, T, Hq]); others: (out [E, J, T, Hq, D], lse float32 [E, J, T, Hq]) of some
    sequences each, J in all, whose lse is lowered by alpha * b. q_EVTHD [E, V, T, Hq, D]: variants of the queries in
    half layout, needed for `bias`: the rotated queries, their components along a codec's axes, or queries pulled back
    to a frame; `scale` is that of the softmax. Any float dtypes and strides, D innermost. A range's result does not
    depend on the other ranges. `lse_ETH` [E, T, Hq]: where the lse of the result is written, if it is a partial itself.
    """
    other_lse = torch.cat([lse for _, lse in others], dim=1)
    if bias is not None:
        assert q_EVTHD is not None, "the bias needs the queries"
        other_lse = other_lse - lse_shifts(bias, q_EVTHD, scale)
    lse = torch.cat([own[1].unsqueeze(1), other_lse], dim=1)
    weights = lse.softmax(1).masked_fill_(lse == -torch.inf, 0.0).unsqueeze(-1)
    if lse_ETH is not None:
        torch.logsumexp(lse, 1, out=lse_ETH)
    num_ranges, num_queries, num_heads, head_dim = out_ETHD.shape
    outs = [out for each, _ in others for out in each.unbind(1)]
    block = max(1, BLOCK_ELEMENTS // (num_ranges * num_heads * head_dim))
    for start in range(0, num_queries, block):
        rows = slice(start, start + block)
        total = own[0][:, rows].float() * weights[:, 0, rows]
        for number, out_EThD in enumerate(outs, start=1):
            total.addcmul_(out_EThD[:, rows].float(), weights[:, number, rows])
        out_ETHD[:, rows] = total


def lse_shifts(bias: BiasTerms, q_EVTHD: Tensor, scale: float) -> Tensor:
    """alpha * b, float32 [E, J, T, Hq]. Reads the flags of the sequences, for which it waits on a GPU."""
    num_heads = bias.square_EJHD.shape[2]
    square_EHJD = bias.square_EJHD.transpose(1, 2)
    kinds = list(zip(bias.variant_J.tolist(), bias.pairs_J.tolist(), strict=True))
    if len(set(kinds)) == 1:
        b_EHJM = biases(_squares(q_EVTHD, *kinds[0], num_heads), square_EHJD, scale)
    else:
        b_EHJM = square_EHJD.new_empty(*square_EHJD.shape[:3], q_EVTHD[0, 0, ..., 0].numel() // num_heads)
        for kind in set(kinds):
            alike = [number for number, each in enumerate(kinds) if each == kind]
            b_EHJM[:, :, alike] = biases(_squares(q_EVTHD, *kind, num_heads), square_EHJD[:, :, alike], scale)
    if bias.alpha_EJH is not None:
        b_EHJM *= bias.alpha_EJH.transpose(1, 2).unsqueeze(-1)
    return b_EHJM.unflatten(3, (q_EVTHD.shape[2], -1)).permute(0, 2, 3, 1, 4).flatten(3)


def _squares(q_EVTHD: Tensor, variant: int, pairs: int, num_heads: int) -> Tensor:
    """Squares of one variant of the queries, float32 [E, H, T * G, D]; of pairs the mean squares [E, H, T * G, D/2]."""
    # Contiguous, because a matrix product may be rounded differently with other strides, and these depend on E.
    q_EHMD = q_EVTHD[:, variant].unflatten(2, (num_heads, -1)).transpose(1, 2).flatten(2, 3).contiguous().float()
    if not pairs:
        return q_EHMD.square()
    first, second = q_EHMD.chunk(2, dim=-1)
    return torch.addcmul(first.square(), second, second).div_(2)
