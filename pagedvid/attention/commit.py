"""The writing half of a commit pass: one layer's keys and values become pages, and the correction factor is measured.

Keys arrive before rotary embedding and in half layout. The factor alpha compares the true shift of log Z, which the
rounding just caused, with the formula's b, under queries of this very pass (quant/correction.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk, RangePlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import NonFiniteError, StateError
from pagedvid.geometry import page_tokens, pages_for_tokens
from pagedvid.quant.codec import get_codec
from pagedvid.quant.correction import bias, fit_alpha, log_mass_shift
from pagedvid.quant.rotary import RopeTables, pair_mean_square, rotate

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
) -> None:
    """Stores one layer of a pending chunk. `q_SHD`: sampled queries of the range, rotated; k before rotary embedding.

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
        pending.alpha[layer] = measure_alpha(spec, pending, q_SHD, k_HnD, key_records, rope).to(pending.alpha.device)
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
    spec: CacheSpec, pending: PendingChunk, q_SHD: Tensor, k_HnD: Tensor, key_records: Tensor, rope: RopeTables | None
) -> Tensor:
    """Factor per KV head, float32 [H]: least squares over the sampled queries of all query heads of its group."""
    codec, num_tokens = get_codec(pending.codec), k_HnD.shape[1]
    padded = pages_for_tokens(num_tokens, pending.codec) * page_tokens(pending.codec)
    stored = codec.decode(key_records, num_tokens, torch.empty(len(k_HnD), padded, spec.head_dim, device=k_HnD.device))
    step_square = codec.mean_square_steps(key_records, num_tokens)
    assert step_square is not None  # only quantized chunks have an alpha
    q = q_SHD.float().unflatten(1, (spec.num_kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
    exact = k_HnD
    if rope is not None:
        cos, sin = (table.to(k_HnD.device) for table in rope.tables(pending.position, num_tokens))
        exact, stored = rotate(k_HnD, cos, sin), rotate(stored, cos, sin)
    q_square = q.square() if rope is None else pair_mean_square(q)
    return fit_alpha(log_mass_shift(q, exact, stored, spec.scale), bias(q_square, step_square, spec.scale))


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
