"""Keys and values of a session's texts: made once for a prompt, read by every forward. They are not paged.

Axes: B one, L tokens of the text, H heads, D channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pagedvid.errors import ShapeError, StateError


class TextShape(NamedTuple):
    """Of one named text of a pipeline."""

    num_tokens: int
    num_heads: int
    head_dim: int


class CrossAttention:
    """The texts of one session by (guidance branch, name); for each layer k and v [L, H, D]."""

    def __init__(self, shapes: dict[str, TextShape], num_layers: int, dtype: torch.dtype) -> None:
        self._shapes, self._num_layers, self._dtype = shapes, num_layers, dtype
        self._texts: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}

    def has(self, branch: str, name: str) -> bool:
        """Whether the text is there. Raises ShapeError for a name that the pipeline did not announce."""
        self._shape(name)
        return (branch, name) in self._texts

    def put(self, branch: str, name: str, layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Keeps k and v [1, L, H, D] of all layers. Raises ShapeError; the former text is then still there."""
        wanted = (1, *self._shape(name))
        kept = []
        for k_BLHD, v_BLHD in layers:
            if tuple(k_BLHD.shape) != wanted or tuple(v_BLHD.shape) != wanted:
                raise ShapeError(
                    f"{name!r} has keys {tuple(k_BLHD.shape)} and values {tuple(v_BLHD.shape)}; the pipeline announced "
                    f"{wanted}"
                )
            kept.append((k_BLHD[0].to(self._dtype, copy=True), v_BLHD[0].to(self._dtype, copy=True)))
        if len(kept) != self._num_layers:
            raise ShapeError(f"{name!r} has keys and values of {len(kept)} layers; the model has {self._num_layers}")
        self._texts[branch, name] = kept

    def get(self, branch: str, name: str) -> list[tuple[Tensor, Tensor]]:
        """k and v [L, H, D] of every layer. Raises StateError before `put`."""
        if not self.has(branch, name):
            raise StateError(f"{name!r} of branch {branch!r} is read before it was stored (populate_cross_attention)")
        return self._texts[branch, name]

    def keep(self, names: Collection[str]) -> None:
        """Drops all but these."""
        for name in names:
            self._shape(name)
        self._texts = {key: layers for key, layers in self._texts.items() if key[1] in names}

    def copy(self) -> CrossAttention:
        """For a fork: the tensors, which nobody writes to, are shared."""
        twin = CrossAttention(self._shapes, self._num_layers, self._dtype)
        twin._texts = dict(self._texts)
        return twin

    def _shape(self, name: str) -> TextShape:
        if name not in self._shapes:
            raise ShapeError(f"the pipeline has no cross-attention {name!r}; it announced {', '.join(self._shapes)}")
        return self._shapes[name]
