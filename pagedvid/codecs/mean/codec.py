"""The codec without pages: every token decodes to the mean that calibration found for its (layer, KV head).

Axes: R = E * h rows, E chunks of h heads; n tokens; P = 0 pages; D head_dim; B bytes of a page.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.base import Codec
from pagedvid.codecs.heads import index_of
from pagedvid.codecs.mean.spec import MeanSpec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ConfigError


@dataclass(frozen=True, eq=False)
class MeanCodec(Codec):
    """The mean of some KV heads of one layer; row r belongs to head r % h."""

    page: PageFormat
    spec: MeanSpec
    mean_hD: Tensor
    """float32."""

    @override
    def of_heads(self, heads: Heads) -> MeanCodec:
        return MeanCodec(self.page, self.spec, self.mean_hD[index_of(heads, self.mean_hD.device)])

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        return x_RnD.new_empty((len(x_RnD), 0, self.page.num_bytes), dtype=torch.uint8)

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        mean_Eh1D = self.mean_hD.to(out).unsqueeze(1).repeat(len(out) // len(self.mean_hD), 1, 1)
        return out[:, :num_tokens].copy_(mean_Eh1D)


def make_codec(page: PageFormat, spec: MeanSpec, tables: Tensor) -> MeanCodec:
    """The codec of a spec; the `CodecSpec.implementation` of `MeanSpec`. `tables`: the means [h, D] of a layer.

    Raises ConfigError if they are for another head_dim.
    """
    if tables.shape[1] != page.head_dim:
        raise ConfigError(
            f"the means are for head_dim {tables.shape[1]}; the cache has {page.head_dim}. Profile this model: "
            "pagedvid profile"
        )
    return MeanCodec(page, spec, tables)
