"""A step's packed queries, keys and values, and places to put them; for the tests of both forms of `arrange`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Arrangement:
    """What `arrange` takes. Heads are cut out of wider tensors, so that strides differ."""

    q: Tensor
    k: Tensor
    v: Tensor
    starts: Tensor
    num_tokens: int
    angles: tuple[Tensor, Tensor]

    @staticmethod
    def draw(
        num_runs: int,
        num_tokens: int,
        heads: tuple[int, int],
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> Arrangement:
        """heads: of queries, and of keys and values. Runs lie apart and in no order."""
        generator = torch.Generator("cpu").manual_seed(num_tokens)
        total = num_runs * (num_tokens + 3) + 2

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cpu").to(device)

        q, (k, v) = randn(total, heads[0] + 1, head_dim).to(dtype)[:, 1:], randn(2, total, heads[1], head_dim).to(dtype)
        starts = 2 + (num_tokens + 3) * torch.randperm(num_runs, generator=generator, device="cpu")
        angles = randn(total, head_dim // 2)
        return Arrangement(q, k, v, starts.int().to(device), num_tokens, (angles.cos(), angles.sin()))

    def outputs(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """For q, k and v: the first [M, n, heads, D] by token, the others by head; NaN."""
        outs = []
        for number, x in enumerate((self.q, self.k, self.v)):
            shape = (len(self.starts), self.num_tokens, x.shape[1], x.shape[2])
            if number:
                shape = (shape[0], shape[2], shape[1], shape[3])
            out = torch.full(shape, torch.nan, dtype=dtype or x.dtype, device=x.device)
            outs.append(out.transpose(1, 2) if number else out)
        return outs

    def runs(self, x: Tensor) -> Tensor:
        """The tokens of all runs, [M, n, ...]."""
        return torch.stack([x[start : start + self.num_tokens] for start in self.starts.tolist()])
