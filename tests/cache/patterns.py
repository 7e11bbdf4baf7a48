"""Keys and values that every codec stores exactly, so that a chunk can be recognised by its bytes.

Every number is 0 or 255 * 2**-k: 255 is a multiple of 3, 15 and 255, so the step sizes of int2, int4 and int8 are
exact in fp16, and 255 needs no more than the 8 significant bits of bf16.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.step import Step
from pagedvid.cache.chunk import Chunk
from pagedvid.codecs.base import Codec, not_storable
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.paged_kv_cache import PagedKVCache

ONE = 255.0 * 2.0**-7
"""The number that is not 0."""


class PatternCodec(Codec):
    """Takes the place of a klt codec: one byte holds eight numbers of a pattern, on as many pages as its name asks for.
    Like klt, it stores keys before rotary embedding and has no step sizes."""

    def __init__(self, page: PageFormat, name: str) -> None:
        self.page = page
        self.spec = read_codec(name)

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        if not bool(torch.isfinite(x_RnD).all()):
            raise not_storable(x_RnD, torch.inf)
        num_rows, num_tokens, head_dim = x_RnD.shape
        bits = torch.zeros(num_rows, self.spec.padded_tokens(self.page, num_tokens), head_dim, dtype=torch.int32)
        bits[:, :num_tokens] = x_RnD != 0
        octets = bits.view(num_rows, self.spec.num_pages(self.page, num_tokens), -1, 8)
        codes = (octets << torch.arange(8, dtype=torch.int32)).sum(-1).to(torch.uint8)
        return torch.nn.functional.pad(codes, (0, self.page.num_bytes - codes.shape[-1]))

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        codes = records_RPB[..., : self.page_tokens * self.page.head_dim // 8].int()
        bits = codes.unsqueeze(-1) >> torch.arange(8, dtype=torch.int32) & 1
        numbers = bits.reshape(len(records_RPB), -1, self.page.head_dim) * ONE
        return out[:, :num_tokens].copy_(numbers[:, :num_tokens])


@lru_cache(maxsize=4096)
def pattern(serial: int, layer: int, num_tokens: int, num_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values [n, H, D] that belong to this serial number and layer only."""
    generator = torch.Generator().manual_seed(1000 * serial + layer)
    bits = torch.randint(0, 2, (2, num_tokens, num_heads, head_dim), generator=generator)
    keys, values = bits * ONE
    return keys, values


def attend_layer(cache: PagedKVCache, step: Step, layer: int, serials: list[int]) -> Tensor:
    """One layer of a forward: range i brings the pattern of serials[i], with its keys as queries."""
    spec = cache.spec
    pairs = [
        pattern(serial, layer, range_.num_tokens, spec.num_kv_heads, spec.head_dim)
        for serial, range_ in zip(serials, step.plan.ranges, strict=True)
    ]
    keys, values = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    queries = keys.repeat_interleave(spec.query_heads // spec.num_kv_heads, dim=1) / 4
    return step.attend(layer, queries, keys, values)


def attend_all(cache: PagedKVCache, step: Step, serials: list[int]) -> None:
    """A whole forward."""
    for layer in range(cache.spec.num_layers):
        attend_layer(cache, step, layer, serials)


def assert_holds(cache: PagedKVCache, chunk: Chunk, serial: int) -> None:
    """The chunk's pages decode to exactly the pattern of the serial number, in all heads that keep any."""
    spec = cache.spec
    for layer in range(spec.num_layers):
        expected = pattern(serial, layer, chunk.num_tokens, spec.num_kv_heads, spec.head_dim)
        kept = tuple(head for head in range(spec.num_kv_heads) if chunk.codecs.at(layer, head) is not None)
        if kept:
            stored = cache.backend.store.read(chunk, layer, None, kept)
            for read, written in zip(stored, expected, strict=True):
                assert torch.equal(read, written[:, kept].transpose(0, 1)), (chunk, serial, layer)
