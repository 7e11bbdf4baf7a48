"""Bytes of a transformer's weights: all on the device, in eight bits, or with its blocks in host memory.

    bf16           all weights on the device
    fp8            linear layers of the blocks in eight bits, with a scale for each row (`model.weights_dtype: fp8`)
    offload        the blocks in host memory, two of them on the device (`model.offload: true`)
    fp8-offload    both

A card says how large all weights and one block are; a card without the size of a block has no offload, and its fp8 is
nominal: one byte for each parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedvid.capacity.cards import ModelCard

BLOCKS_ON_DEVICE = 2
"""As in models/common/offload.py, which imports PyTorch; a test compares the two."""
NO_WEIGHTS = "none"
"""Weights that are on another device."""


@dataclass(frozen=True)
class WeightBytes:
    """Where the weights are."""

    device: int
    host: int = 0


def weight_formats(card: ModelCard) -> Mapping[str, WeightBytes]:
    """What a card's weights take, by format."""
    formats = {name: WeightBytes(num_bytes) for name, num_bytes in card.weights.items()}
    if card.block:
        outside = card.weights["bf16"] - card.num_layers * card.block["bf16"]
        formats["fp8"] = WeightBytes(outside + card.num_layers * card.block["fp8"])
        for name, block_bytes in (("offload", card.block["bf16"]), ("fp8-offload", card.block["fp8"])):
            on_device = outside + BLOCKS_ON_DEVICE * block_bytes
            formats[name] = WeightBytes(on_device, host=card.num_layers * block_bytes)
    return {**formats, NO_WEIGHTS: WeightBytes(0)}
