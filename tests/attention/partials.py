"""Partials to merge, what b and merging are in float64, and dense partials of queries over keys.

Axes: E ranges, J corrected sequences, V variants of the queries, T queries, H KV heads, G query heads per KV head, Hq =
H * G, n keys, D head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.merge import BiasTerms
from pagedvid.correction.formula import HOT_CHANNEL_X, log_sinhc
from pagedvid.rotary.tables import pair_mean_square

Partial = tuple[Tensor, Tensor]
"""(out [..., D], lse [...])."""


def dense_partial(q: Tensor, k: Tensor, v: Tensor) -> Partial:
    """Attention of q [..., T, D] over k and v [..., n, D] in float64, returned in float32. No keys: (0, -inf)."""
    scores = q.double() @ k.double().mT
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp()
    return (weights @ v.double()).float(), lse.float()


def merged(partials: list[Partial]) -> Partial:
    """All partials joined in float64."""
    lse = torch.stack([lse.double() for _, lse in partials])
    total = lse.logsumexp(0)
    weights = (lse - total).exp().masked_fill(lse == -torch.inf, 0.0)
    return sum(w.unsqueeze(-1) * out.double() for w, (out, _) in zip(weights, partials, strict=True)), total


@dataclass
class Case:
    """Arguments of `merge`."""

    own: Partial
    others: Partial
    bias: BiasTerms
    q_EVTHD: Tensor
    scale: float

    @staticmethod
    def draw(
        shape: tuple[int, int, int, int, int, int],
        *,
        dtype: torch.dtype = torch.float32,
        num_variants: int = 1,
        pairs: str = "all",
        alpha: bool = True,
        hot: int = 0,
        head_major: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Case:
        """shape: (E, J, T, H, G, D). pairs: "all", "none" or "mixed"; hot: number of outlier channels of each head.

        The first sequence of every range is not corrected, if there are several. Some squares are negative.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        num_ranges, num_others, num_queries, num_heads, group, head_dim = shape
        heads = num_heads * group

        def randn(*lengths: int) -> Tensor:
            return torch.randn(*lengths, generator=generator, device="cpu").to(device)

        def rows(*lengths: int) -> Tensor:
            """[*lengths, T, Hq], rows of tokens or of heads next to each other."""
            return randn(*lengths, heads, num_queries).mT if head_major else randn(*lengths, num_queries, heads)

        def vectors(*lengths: int) -> Tensor:
            if head_major:
                return randn(*lengths, heads, num_queries, head_dim).to(dtype).transpose(-2, -3)
            wide = randn(*lengths, num_queries, heads, 2 * head_dim).to(dtype)
            return wide[..., :head_dim]

        square = 0.3 * randn(num_ranges, num_others, num_heads, head_dim)
        square = torch.where(square < 0, 0.2 * square, square)
        for channel in torch.randperm(head_dim, generator=generator, device="cpu")[:hot].tolist():
            square[..., channel] = 900.0
        if num_others > 1:
            square[:, 0] = 0.0
        number = torch.arange(num_others, dtype=torch.int32, device=device)
        takes_pairs = {"all": torch.ones_like(number), "none": torch.zeros_like(number), "mixed": number // 2 % 2}
        bias = BiasTerms(
            square,
            randn(num_ranges, num_others, num_heads).sigmoid() + 0.5 if alpha else None,
            number % num_variants,
            takes_pairs[pairs],
        )
        q = 1.5 * vectors(num_ranges, num_variants)
        own = vectors(num_ranges), rows(num_ranges)
        others = vectors(num_ranges, num_others), rows(num_ranges, num_others)
        return Case(own, others, bias, q, 1 / math.sqrt(head_dim))

    def exact_shift(self, exact_from: float = 0.0) -> Tensor:
        """alpha * b in float64, [E, J, T, Hq]; of u = x^2 below `exact_from` only the second order is taken."""
        num_heads = self.bias.square_EJHD.shape[2]
        shifts = []
        for number, (variant, pairs) in enumerate(
            zip(self.bias.variant_J.tolist(), self.bias.pairs_J.tolist(), strict=True)
        ):
            q = self.q_EVTHD[:, variant].double().unflatten(2, (num_heads, -1))
            # pair_mean_square is in float32
            q_square = pair_mean_square(q).double() if pairs else q.square()
            u = q_square * self.bias.square_EJHD[:, number].double()[:, None, :, None] * (self.scale**2 / 4)
            b = torch.where(u >= max(exact_from, 0.0), log_sinhc(u.clamp(min=0).sqrt()), u / 6).sum(-1)
            if self.bias.alpha_EJH is not None:
                b = b * self.bias.alpha_EJH[:, number].double()[:, None, :, None]
            shifts.append(b.flatten(2))
        return torch.stack(shifts, 1)

    def expected(self, shift_EJTH: Tensor | None) -> Tensor:
        """What is merged after lowering the lse of the others, float64 [E, T, Hq, D]."""
        outs, lse = self.others
        lse = lse.double() if shift_EJTH is None else lse.double() - shift_EJTH.double()
        return merged([self.own, *zip(outs.unbind(1), lse.unbind(1), strict=True)])[0]


EXACT_FROM = HOT_CHANNEL_X**2
"""x^2 from which on kernels take the exact form, entry by entry."""
