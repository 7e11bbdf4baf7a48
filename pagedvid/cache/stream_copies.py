"""From an open stream to its image and back, and whether an image fits a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.host_copies import HostCopies
from pagedvid.cache.pool import PageIds, PageTable
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import BranchHistory, Stream
from pagedvid.cache.stream_image import BranchImage, ChunkImage, StreamImage
from pagedvid.errors import ConfigError


def image_of(stream: Stream, spec: CacheSpec, copies: HostCopies) -> StreamImage:
    """The image of an open stream. Pages that it shares with forks are copied as well."""
    return StreamImage(
        shape=spec.shape,
        correction_unit=spec.correction_unit,
        window=stream.window,
        codecs=stream.codecs,
        chunk_tokens=stream.chunk_tokens,
        max_chunks=stream.max_chunks,
        commits=stream.commits,
        branches={name: _branch_image(history, copies) for name, history in stream.branches.items()},
    )


def _branch_image(history: BranchHistory, copies: HostCopies) -> BranchImage:
    return BranchImage(
        chunks=tuple(_chunk_image(chunk, copies) for chunk in history.chunks.values()),
        pinned=history.pinned,
        dropped=history.dropped,
        num_committed=history.num_committed,
        num_committed_tokens=history.num_committed_tokens,
    )


def _chunk_image(chunk: Chunk, copies: HostCopies) -> ChunkImage:
    return ChunkImage(
        index=chunk.index,
        first_token=chunk.first_token,
        position=chunk.position,
        num_tokens=chunk.num_tokens,
        codecs=chunk.codecs,
        records_PB=copies.pages_out(chunk.table.ids),
        alpha_LH=copies.out(chunk.alpha),
        variance_LHD=copies.out(chunk.variance),
        runs=dict(chunk.runs),
        digests=chunk.digests,
        ropes=dict(chunk.ropes),
        tag=chunk.tag,
    )


def require_same_cache(image: StreamImage, spec: CacheSpec) -> None:
    """Raises ConfigError for an image whose bytes mean something else in a cache with this spec, naming what differs,
    and for a damaged one."""
    there = {**asdict(image.shape), "correction_unit": image.correction_unit}
    here = {**asdict(spec.shape), "correction_unit": spec.correction_unit}
    differing = [f"{name} {there[name]!r} instead of {here[name]!r}" for name in here if there[name] != here[name]]
    if differing:
        raise ConfigError(
            f"the image comes from a cache with {', '.join(differing)}; copy it into a cache for the same model, with "
            "the same codecs and correction"
        )
    for branch in image.branches.values():
        for chunk in branch.chunks:
            _require_whole(chunk, spec.shape)


def _require_whole(chunk: ChunkImage, shape: KVShape) -> None:
    num_pages = shape.chunk_pages(chunk.num_tokens, chunk.codecs)
    by_head = (shape.num_layers, shape.num_kv_heads)
    keeps_alpha, keeps_variance = shape.keeps_alpha(chunk.codecs), shape.keeps_variance(chunk.codecs)
    for name, tensor, wanted in (
        ("pages", chunk.records_PB, (torch.uint8, (num_pages, shape.page_bytes))),
        ("alpha", chunk.alpha_LH, (torch.float32, by_head) if keeps_alpha else None),
        ("variance", chunk.variance_LHD, (torch.bfloat16, (*by_head, shape.head_dim)) if keeps_variance else None),
    ):
        given = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
        if given != wanted:
            raise ConfigError(
                f"{name} of chunk {chunk.index} in the image are {given}; its codecs {chunk.codecs} want {wanted}. The "
                "image is damaged: make it again with `copy_out`"
            )


def stream_of(
    image: StreamImage, shape: KVShape, base_peak_pages: int, placed: Callable[[ChunkImage], Chunk]
) -> Stream:
    """The stream of an image. `placed`: makes a chunk of its image."""
    branches = {}
    for name, branch in image.branches.items():
        chunks = {chunk.index: placed(chunk) for chunk in branch.chunks}
        branches[name] = BranchHistory(
            image.window,
            image.codecs,
            shape,
            chunks,
            branch.pinned,
            branch.dropped,
            branch.num_committed,
            branch.num_committed_tokens,
        )
    plan = (image.chunk_tokens, image.max_chunks, image.commits)
    return Stream(-1, image.window, image.codecs, *plan, branches, base_peak_pages, base_peak_pages)


def chunk_without_pages(image: ChunkImage, shape: KVShape) -> Chunk:
    """The chunk of an image that is in no pool: enough to count the pages that it needs."""
    nowhere = np.full(image.num_pages, -1, dtype=np.int32)
    return chunk_of(image, -1, nowhere, shape, image.records_PB.device)


def chunk_of(image: ChunkImage, chunk_id: int, ids: PageIds, shape: KVShape, device: torch.device) -> Chunk:
    """The chunk of an image whose bytes are in the pages `ids`, int32 [P]; its small tensors go to the device."""

    def there(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device)

    return Chunk(
        index=image.index,
        first_token=image.first_token,
        position=image.position,
        num_tokens=image.num_tokens,
        codecs=image.codecs,
        tag=image.tag,
        id=chunk_id,
        table=PageTable(ids, shape.table_bounds(image.num_tokens, image.codecs), shape.num_kv_heads),
        alpha=there(image.alpha_LH),
        variance=there(image.variance_LHD),
        ropes=dict(image.ropes),
        runs=dict(image.runs),
        digests=image.digests,
    )
