"""The writing half of a commit pass: one layer's keys and values become pages, and the correction factor is measured.

Keys arrive before rotary embedding and in half layout. The factor alpha compares the true shift of log Z, which the
rounding just caused, with the formula's b, under queries of this very pass (quant/correction.py). A chunk that is read
in several views has one factor, fitted to the queries of all of them (attention/measure.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pagedvid.attention.measure import ProjectedQueries, StoredKeys, projected_effect, rotary_effect
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk, RangePlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import NonFiniteError, StateError
from pagedvid.geometry import page_tokens
from pagedvid.quant.codec import get_codec
from pagedvid.quant.correction import fit_alpha
from pagedvid.quant.rotary import RopeTables

MEASURED_QUERIES = 128
"""Queries of the pass, evenly spread, on which alpha is fitted. More change it little and cost attention time."""


def sampled_tokens(range_: RangePlan) -> Tensor:
    """Packed tokens of a range whose queries measure alpha, int64."""
    num_sampled = min(range_.num_tokens, MEASURED_QUERIES)
    return range_.start + torch.arange(num_sampled) * (range_.num_tokens - 1) // max(1, num_sampled - 1)


def write_layer(
    pool: PagePool,
    spec: CacheSpec,
    pending: PendingChunk,
    layer: int,
    q_SHD: Tensor,
    k_nHD: Tensor,
    v_nHD: Tensor,
    rope: RopeTables | None,
    projected: Sequence[ProjectedQueries] = (),
) -> None:
    """Stores one layer of a pending chunk. `q_SHD`: sampled queries of the range, rotated; k before rotary embedding.

    `projected`: the same queries for every further view in which the chunk will be read.
    Raises NonFiniteError naming layer and heads, StateError when the layer was written before.
    """
    if layer in pending.layers_written:
        raise StateError(f"layer {layer} of chunk {pending.index} was attended twice in one commit pass")
    if pending.source is not None:
        k_HnD, v_HnD = read_layer(pool, spec, pending.source, layer)
    else:
        k_HnD, v_HnD = k_nHD.transpose(0, 1).float(), v_nHD.transpose(0, 1).float()
    key_records = _encode(pending, layer, "keys", k_HnD)
    value_records = _encode(pending, layer, "values", v_HnD)
    pages_per_table = len(pending.pages) // spec.shape.num_tables
    first, last = layer * spec.num_kv_heads, (layer + 1) * spec.num_kv_heads
    ids = torch.from_numpy(pending.pages[first * pages_per_table : last * pages_per_table]).long().to(pool.device)
    pool.keys.index_copy_(0, ids, key_records.flatten(0, 1))
    pool.values.index_copy_(0, ids, value_records.flatten(0, 1))
    if pending.alpha is not None:
        pending.alpha[layer] = measure_alpha(spec, pending, q_SHD, k_HnD, key_records, rope, projected).to(
            pending.alpha.device
        )
    pending.layers_written.add(layer)


def read_layer(pool: PagePool, spec: CacheSpec, chunk: Chunk, layer: int) -> tuple[Tensor, Tensor]:
    """Stored keys (before rotary embedding) and values of one layer of a chunk, float32 [H, n, D]."""
    codec = get_codec(chunk.codec)
    pages = chunk.layer_pages(layer, spec.num_kv_heads)
    keys, values = (records.unflatten(0, pages.shape) for records in pool.page_bytes_of(pages.ravel()))
    shape = (spec.num_kv_heads, pages.shape[1] * page_tokens(chunk.codec), spec.head_dim)
    buffers = torch.empty(2, *shape, device=pool.device)
    return codec.decode(keys, chunk.num_tokens, buffers[0]), codec.decode(values, chunk.num_tokens, buffers[1])


def measure_alpha(
    spec: CacheSpec,
    pending: PendingChunk,
    q_SHD: Tensor,
    k_HnD: Tensor,
    key_records: Tensor,
    rope: RopeTables | None,
    projected: Sequence[ProjectedQueries] = (),
) -> Tensor:
    """Factor per KV head, float32 [H]: least squares over the sampled queries of all query heads of its group."""
    keys = StoredKeys(k_HnD, get_codec(pending.codec), key_records)
    effects = [rotary_effect(keys, q_SHD, rope, pending.position, spec.scale)]
    effects += [projected_effect(keys, queries, spec.scale) for queries in projected]
    shift, b = (torch.cat([effect[i] for effect in effects], dim=-1) for i in (0, 1))
    return fit_alpha(shift, b)


def _encode(pending: PendingChunk, layer: int, what: str, x_HnD: Tensor) -> Tensor:
    try:
        return get_codec(pending.codec).encode(x_HnD)
    except NonFiniteError as error:
        heads = ", ".join(map(str, error.rows))
        raise NonFiniteError(
            f"{what} of layer {layer}, KV head {heads}, chunk {pending.index} cannot be stored as "
            f"{pending.codec}: {error}. "
            "The commit was rolled back; look for an overflow in the model's forward.",
            error.rows,
        ) from error
