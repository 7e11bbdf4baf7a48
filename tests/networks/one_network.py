"""A network of three layers of attention, which may break, and an attention that differs in every forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pagedvid.errors import NonFiniteError

LAYERS, TOKENS, WIDTH = 3, 5, 4


class Network(nn.Module):
    """`fails`: whether it breaks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.num_calls = 0
        self.fails = False

    def forward(self, x_TW: Tensor, more: list[Tensor], attend: Callable[..., Tensor]) -> Tensor:
        self.num_calls += 1
        for layer in range(LAYERS):
            q = self.linear(x_TW).unflatten(1, (2, -1))
            if self.fails and layer == 1:
                raise ValueError("the network broke")
            x_TW = x_TW + attend(layer, q, q + 1, q + sum(each.sum() for each in more)).flatten(1)
        return x_TW * 2


class Attention:
    """Different in every forward, as the history is."""

    def __init__(self, number: int, fails: bool = False) -> None:
        self.number, self.fails = number, fails
        self.layers: list[Any] = []

    def __call__(self, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.layers.append(layer)
        if self.fails and layer == 1:
            raise NonFiniteError("layer 1 has NaN")
        return (q * k).cos() + self.number * v + layer


def arguments(seed: int, num_tokens: int = TOKENS) -> tuple[Tensor, list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, WIDTH, generator=draw), [torch.randn(2, generator=draw) for _ in range(2)]
