"""A `StreamImage` as JSON fields and tensors, and back, without what a model gives again (`StreamImage.with_model`).

The spec of its cache is left out, too: the caller stores that (engine/checkpoint_file.py).

Tensors by name, for chunk number c of branch number b, both counted in the order of the fields:

    image/{b}/{c}/records     uint8    [P, B]
    image/{b}/{c}/alpha       float32  [L, H]        if the chunk has measured factors
    image/{b}/{c}/variance    bfloat16 [L, H, D]     if it keeps changes of variance
    image/{b}/{c}/digests     uint8    [N, 16]       if it has digests

Axes: P pages, B bytes of a page, L layers, H KV heads, D head_dim, N page tables.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedvid.arguments import instance_of, list_of, whole_number, whole_numbers
from pagedvid.cache.codec_fields import (
    chunk_codecs_from_fields,
    chunk_codecs_to_fields,
    codecs_from_fields,
    codecs_to_fields,
)
from pagedvid.cache.plan import MAX_POSITION
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import BranchImage, ChunkImage, StreamImage
from pagedvid.cache.window import Commit, Window
from pagedvid.errors import ConfigError
from pagedvid.files.checked_tensors import take_tensor
from pagedvid.files.plain_json import object_with, rows_of
from pagedvid.shown import shown

MAX_COUNT = 2**40
"""Largest number of tokens or chunks that is read."""
_DIGEST_BYTES = 16


def image_to_fields(image: StreamImage, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The image as fields for a JSON object. Its tensors, those of `StreamImage`, are added to `tensors` by name."""
    return {
        "window": asdict(image.window),
        "codecs": codecs_to_fields(image.codecs),
        "chunk_tokens": image.chunk_tokens,
        "max_chunks": image.max_chunks,
        "commits": None if image.commits is None else [[each.num_tokens, list(each.drops)] for each in image.commits],
        "branches": [
            _branch_to_fields(name, branch, f"image/{number}", tensors)
            for number, (name, branch) in enumerate(image.branches.items())
        ],
    }


def image_from_fields(fields: object, tensors: dict[str, Tensor], spec: CacheSpec) -> StreamImage:
    """The image for a cache with this spec, from what `image_to_fields` made; its tensors are taken out of `tensors`.

    Raises ConfigError for what no stream of such a cache can be.
    """
    names = ("window", "codecs", "chunk_tokens", "max_chunks", "commits", "branches")
    given = object_with(names, fields, "the stream")
    window = Window(**object_with(("sink_chunks", "recent_chunks", "positions"), given["window"], "the window"))
    codecs = codecs_from_fields(given["codecs"])
    spec.check_codecs(codecs)
    chunk_tokens = _count("chunk_tokens", given["chunk_tokens"], 1)
    max_chunks = None if given["max_chunks"] is None else _count("max_chunks", given["max_chunks"])
    commits = None if given["commits"] is None else tuple(map(_commit, rows_of(2, "commits", given["commits"])))
    branches: dict[str, BranchImage] = {}
    for number, written in enumerate(list_of(dict, "branches", given["branches"], "[{...}]", ConfigError)):
        name, branch = _branch_from_fields(written, f"image/{number}", tensors, spec)
        if name in branches:
            raise ConfigError(f"the branch {shown(name)} is there twice")
        _check_branch(branch, window, codecs, chunk_tokens)
        branches[name] = branch
    return StreamImage(spec.shape, spec.correction_unit, window, codecs, chunk_tokens, max_chunks, commits, branches)


# ---------------------------------------------------------------------- branches


def _branch_to_fields(name: str, branch: BranchImage, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "name": name,
        "pinned": sorted(branch.pinned),
        "dropped": sorted(branch.dropped),
        "num_committed": branch.num_committed,
        "num_committed_tokens": branch.num_committed_tokens,
        "chunks": [
            _chunk_to_fields(chunk, f"{prefix}/{number}", tensors) for number, chunk in enumerate(branch.chunks)
        ],
    }


def _branch_from_fields(
    fields: object, prefix: str, tensors: dict[str, Tensor], spec: CacheSpec
) -> tuple[str, BranchImage]:
    names = ("name", "pinned", "dropped", "num_committed", "num_committed_tokens", "chunks")
    given = object_with(names, fields, "a branch")
    chunks = list_of(dict, "chunks", given["chunks"], "[{...}]", ConfigError)
    name = instance_of(str, "name of a branch", given["name"], "text such as 'cond'", ConfigError)
    return name, BranchImage(
        tuple(_chunk_from_fields(chunk, f"{prefix}/{number}", tensors, spec) for number, chunk in enumerate(chunks)),
        frozenset(whole_numbers("pinned", given["pinned"], 0, ConfigError)),
        frozenset(whole_numbers("dropped", given["dropped"], 0, ConfigError)),
        _count("num_committed", given["num_committed"]),
        _count("num_committed_tokens", given["num_committed_tokens"]),
    )


def _check_branch(branch: BranchImage, window: Window, codecs: StreamCodecs, chunk_tokens: int) -> None:
    """Raises ConfigError for chunks that were not committed, are not kept, are too long, or in codecs of no stream."""
    indices = [chunk.index for chunk in branch.chunks]
    if indices != sorted(set(indices)):
        raise ConfigError(f"the chunks {shown(indices)} are not in ascending order")
    if not branch.pinned <= set(indices):
        raise ConfigError(f"chunks {shown(sorted(branch.pinned))} are pinned, but only {shown(indices)} are there")
    known = {codec for each in codecs.all() for codec in each.all}
    for chunk in branch.chunks:
        is_kept = chunk.index in branch.pinned or window.keeps(chunk.index, branch.num_committed)
        if chunk.index >= branch.num_committed or not is_kept or chunk.index in branch.dropped:
            raise ConfigError(f"chunk {chunk.index} is not kept after {branch.num_committed} commits")
        if not known.issuperset(chunk.codecs.all):
            raise ConfigError(
                f"chunk {chunk.index} is stored in {shown(str(chunk.codecs))}, which its stream does not use"
            )
        end = chunk.first_token + chunk.num_tokens
        if chunk.num_tokens > chunk_tokens or end > branch.num_committed_tokens:
            raise ConfigError(
                f"chunk {chunk.index} has the tokens from {chunk.first_token} to {end} of "
                f"{branch.num_committed_tokens}; a chunk has at most {chunk_tokens}"
            )


# ---------------------------------------------------------------------- chunks


def _chunk_to_fields(chunk: ChunkImage, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    tensors[f"{prefix}/records"] = chunk.records_PB
    if chunk.alpha_LH is not None:
        tensors[f"{prefix}/alpha"] = chunk.alpha_LH
    if chunk.variance_LHD is not None:
        tensors[f"{prefix}/variance"] = chunk.variance_LHD
    if chunk.digests is not None:
        digests_ND = np.frombuffer(b"".join(chunk.digests), np.uint8).reshape(-1, _DIGEST_BYTES)
        tensors[f"{prefix}/digests"] = torch.from_numpy(digests_ND.copy())
    return {
        "index": chunk.index,
        "first_token": chunk.first_token,
        "position": chunk.position,
        "num_tokens": chunk.num_tokens,
        "codecs": chunk_codecs_to_fields(chunk.codecs),
        "runs": [[layer, list(runs)] for layer, runs in chunk.runs.items()],
    }


def _chunk_from_fields(fields: object, prefix: str, tensors: dict[str, Tensor], spec: CacheSpec) -> ChunkImage:
    names = ("index", "first_token", "position", "num_tokens", "codecs", "runs")
    given = object_with(names, fields, "a chunk")
    num_tokens = _count("num_tokens", given["num_tokens"], 1)
    codecs, shape = chunk_codecs_from_fields(given["codecs"]), spec.shape
    num_pages, heads = shape.chunk_pages(num_tokens, codecs), (shape.num_layers, shape.num_kv_heads)
    alpha, variance, digests = (f"{prefix}/{name}" for name in ("alpha", "variance", "digests"))
    return ChunkImage(
        index=_count("index", given["index"]),
        first_token=_count("first_token", given["first_token"]),
        position=whole_number("position", given["position"], 0, MAX_POSITION, ConfigError),
        num_tokens=num_tokens,
        codecs=codecs,
        records_PB=take_tensor(tensors, f"{prefix}/records", (torch.uint8,), (num_pages, shape.page_bytes)),
        alpha_LH=take_tensor(tensors, alpha, (torch.float32,), heads) if shape.keeps_alpha(codecs) else None,
        variance_LHD=take_tensor(tensors, variance, (torch.bfloat16,), (*heads, shape.head_dim))
        if shape.keeps_variance(codecs)
        else None,
        runs=dict(_layer_runs(row, num_tokens, spec) for row in rows_of(2, "runs", given["runs"])),
        digests=_digests(tensors, digests, 2 * shape.num_tables) if digests in tensors else None,
    )


def _layer_runs(row: tuple[Any, ...], num_tokens: int, spec: CacheSpec) -> tuple[int, tuple[int, ...]]:
    layer = whole_number("layer of runs", row[0], 0, spec.num_layers - 1, ConfigError)
    runs = whole_numbers("runs", row[1], 1, ConfigError)
    if sum(runs) != num_tokens:
        raise ConfigError(f"the runs of layer {layer} have {sum(runs)} tokens, their chunk {num_tokens}")
    return layer, runs


def _digests(tensors: dict[str, Tensor], name: str, num_tables: int) -> tuple[bytes, ...]:
    return tuple(
        row.tobytes() for row in take_tensor(tensors, name, (torch.uint8,), (num_tables, _DIGEST_BYTES)).numpy()
    )


# ---------------------------------------------------------------------- parts


def _commit(row: tuple[Any, ...]) -> Commit:
    return Commit(_count("num_tokens of a commit", row[0], 1), whole_numbers("drops", row[1], 0, ConfigError))


def _count(name: str, value: object, minimum: int = 0) -> int:
    return whole_number(name, value, minimum, MAX_COUNT, ConfigError)
