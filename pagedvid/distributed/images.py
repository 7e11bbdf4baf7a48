"""Images of streams: one rank's part of a whole one, and the whole one from all ranks' parts.

A whole image is that of a cache with all heads, so a checkpoint of a stream that was made on several devices goes on
with any number of them. Everything that is not by head is the same in all parts.

Axes: P pages, B bytes of a page, L layers, H KV heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_image import ChunkImage, StreamImage
from pagedvid.codecs.assignment import KINDS
from pagedvid.distributed.heads import HeadShard, join_chunk_codecs, join_codecs


def part_of_image(image: StreamImage, heads: HeadShard) -> StreamImage:
    """What a rank has of a whole image."""
    whole, own = image.shape, replace(image.shape, num_kv_heads=heads.num_heads)
    part = image.with_chunks(lambda _, chunk: _part_of_chunk(chunk, whole, own, heads))
    return replace(part, shape=own, codecs=heads.of_codecs(image.codecs))


def join_images(parts: Sequence[StreamImage]) -> StreamImage:
    """The whole image, from those of all ranks in order: the inverse of `part_of_image`.

    A rank none of whose heads needs a factor or a variance keeps none; they are 1 and 0 then, and nothing reads them.
    """
    first, own = parts[0], parts[0].shape
    whole = replace(own, num_kv_heads=own.num_kv_heads * len(parts))
    branches = {
        name: replace(
            branch,
            chunks=tuple(
                _join_chunks([part.branches[name].chunks[number] for part in parts], own, whole)
                for number in range(len(branch.chunks))
            ),
        )
        for name, branch in first.branches.items()
    }
    codecs = join_codecs([part.codecs for part in parts], own.num_kv_heads)
    return replace(first, shape=whole, codecs=codecs, branches=branches)


def _part_of_chunk(chunk: ChunkImage, whole: KVShape, own: KVShape, heads: HeadShard) -> ChunkImage:
    codecs = heads.of_chunk_codecs(chunk.codecs)
    bounds = whole.table_bounds(chunk.num_tokens, chunk.codecs).tolist()
    tables = list(_own_tables(whole, heads))
    records = [chunk.records_PB[bounds[run.start] : bounds[run.stop]] for run in tables]
    digests = chunk.digests
    return replace(
        chunk,
        codecs=codecs,
        records_PB=torch.cat(records),
        alpha_LH=_own_heads(chunk.alpha_LH, heads) if own.keeps_alpha(codecs) else None,
        variance_LHD=_own_heads(chunk.variance_LHD, heads) if own.keeps_variance(codecs) else None,
        digests=None if digests is None else tuple(digest for run in tables for digest in digests[run]),
    )


def _own_tables(whole: KVShape, heads: HeadShard) -> Iterator[slice]:
    """Of a chunk's page tables, which are ordered by kind, layer and head, those of the rank: one run per layer."""
    for first in range(0, len(KINDS) * whole.num_tables, whole.num_kv_heads):
        yield slice(first + heads.first, first + heads.end)


def _own_heads(x_LH: Tensor | None, heads: HeadShard) -> Tensor | None:
    return None if x_LH is None else x_LH[:, heads.kv_slice()].contiguous()


def _join_chunks(parts: Sequence[ChunkImage], own: KVShape, whole: KVShape) -> ChunkImage:
    codecs = join_chunk_codecs([part.codecs for part in parts], own.num_kv_heads)
    by_head = (own.num_layers, own.num_kv_heads)
    digests = [part.digests for part in parts if part.digests is not None]
    return replace(
        parts[0],
        codecs=codecs,
        records_PB=torch.cat(list(_records_in_order(parts, own))),
        alpha_LH=_join_heads(
            [part.alpha_LH for part in parts], lambda: torch.ones(by_head, dtype=torch.float32, device="cpu")
        )
        if whole.keeps_alpha(codecs)
        else None,
        variance_LHD=_join_heads(
            [part.variance_LHD for part in parts],
            lambda: torch.zeros((*by_head, own.head_dim), dtype=torch.bfloat16, device="cpu"),
        )
        if whole.keeps_variance(codecs)
        else None,
        digests=tuple(_digests_in_order(digests, own)) if digests else None,
    )


def _records_in_order(parts: Sequence[ChunkImage], own: KVShape) -> Iterator[Tensor]:
    """Pages by kind, layer, rank and head."""
    bounds = [own.table_bounds(part.num_tokens, part.codecs).tolist() for part in parts]
    for first in range(0, len(KINDS) * own.num_tables, own.num_kv_heads):
        for part, ends in zip(parts, bounds, strict=True):
            yield part.records_PB[ends[first] : ends[first + own.num_kv_heads]]


def _digests_in_order(parts: Sequence[tuple[bytes, ...]], own: KVShape) -> Iterator[bytes]:
    for first in range(0, len(KINDS) * own.num_tables, own.num_kv_heads):
        for digests in parts:
            yield from digests[first : first + own.num_kv_heads]


def _join_heads(parts: Sequence[Tensor | None], unused: Callable[[], Tensor]) -> Tensor:
    return torch.cat([unused() if part is None else part for part in parts], dim=1)
