"""Codecs without loss, up to the rounding of a float type: fp32 and bf16. A page is filled with values, row by row.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; B bytes of a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.codecs.base import not_storable
from pagedvid.codecs.page import PageFormat, read_codec
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class RawCodec:
    """Values kept as they are in a float type: no steps, never corrected.

    Named "sim", it writes fp32 pages for a codec under study, which rounds the values before.
    """

    page: PageFormat
    name: str
    axes: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if read_codec(self.name).family != "raw":
            raise ConfigError(f"{self.name!r} is not a raw codec; these are fp32, bf16 and sim")

    @property
    def stores_rotated(self) -> bool:
        """False: keys are stored before rotary embedding."""
        return False

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the stored values."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    def encode(self, x_RnD: Tensor) -> Tensor:
        """See `Codec.encode`."""
        stored = x_RnD.to(self.dtype)
        if not bool(torch.isfinite(stored).all()):
            raise not_storable(x_RnD, torch.finfo(self.dtype).max)
        num_rows, num_tokens, head_dim = x_RnD.shape
        values = stored.new_zeros(num_rows, self.page.padded_tokens(num_tokens, self.name), head_dim)
        values[:, :num_tokens] = stored
        value_bytes = values.view(num_rows, self.page.num_pages(num_tokens, self.name), -1).view(torch.uint8)
        return torch.nn.functional.pad(value_bytes, (0, self.page.num_bytes - value_bytes.shape[-1]))

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """See `Codec.decode`."""
        value_bytes = self.page.page_tokens(self.name) * self.page.head_dim * self.dtype.itemsize
        values = records_RPB[..., :value_bytes]
        if self.page.num_bytes % self.dtype.itemsize:  # then no page after the first starts where a number may
            values = values.clone(memory_format=torch.contiguous_format)
        tokens = out[:, :num_tokens]
        paged = values.view(self.dtype).unflatten(-1, (-1, self.page.head_dim))
        return tokens.copy_(paged.flatten(1, 2)[:, :num_tokens])

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """None: there is no step."""
        return None
