"""Bytes besides the pages: the current chunk, the scratch for reading, the temporaries of a commit, and codec tables.

The temporaries of a commit are those of attention/store.py for one layer of one chunk, as no more exist at once; those
of encoding and decoding come from each codec (`CodecSpec`). `pagedvid capacity --prove` measures them and fails when
they no longer match this file. Activations of the model itself, its VAE and text encoder are not counted: that is what
--reserve is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.cards import StreamSize
from pagedvid.codecs.assignment import KINDS, ChunkCodecs
from pagedvid.codecs.spec import F32_BYTES, CodecSpec
from pagedvid.units import MIB

BF16_BYTES = 2
MEASURED_QUERIES = 32
"""As in attention/measure.py, which imports PyTorch; a test compares the two."""
GPU_SCRATCH_BYTES = 512 * MIB
"""As in attention/scratch.py, which imports PyTorch; a test compares the two."""


def current_bytes(size: StreamSize) -> int:
    """Queries, keys and values of the current chunk in BF16: one layer, all branches."""
    num_heads = size.num_query_heads + 2 * size.shape.num_kv_heads
    return BF16_BYTES * size.num_branches * size.current_tokens * num_heads * size.shape.head_dim


def scratch_bytes(size: StreamSize, codecs: StreamCodecs) -> int:
    """What reading one layer needs on a GPU: decoded keys and values; a partial for every chunk that is corrected;
    rotated queries, a partial of what is not, and the result.

    The first two never exceed the scratch. Ranges of small models are read together, but never more of them than the
    scratch would hold of one range of a large model.
    """
    shape, num_chunks = size.shape, size.window.max_chunks
    num_tokens = size.current_tokens + num_chunks * size.chunk_tokens
    decoded = 2 * BF16_BYTES * num_tokens * shape.num_kv_heads * shape.head_dim
    partial = BF16_BYTES * size.current_tokens * size.num_query_heads * shape.head_dim
    partials = 0 if codecs.correction == "off" else num_chunks * partial
    return min(GPU_SCRATCH_BYTES, decoded) + min(GPU_SCRATCH_BYTES, partials) + 3 * partial


def commit_bytes(size: StreamSize, codecs: StreamCodecs, *, measured: bool, has_rope: bool) -> int:
    """Most bytes of temporaries while one layer of one chunk is stored; `measured`: alpha is fitted too.

    A chunk that leaves its `newest` codec is decoded into whole pages first; others arrive as they are.
    """
    newest = codecs.at_commit(size.window.max_chunks, size.window)
    peaks = []
    for chunk in _chunk_codecs(size, codecs):
        source = newest if codecs.newest is not None and chunk != newest else None
        for layer in range(size.shape.num_layers):
            for heads, pair in chunk.runs(layer, slice(0, size.shape.num_kv_heads)):
                if pair is None:
                    continue
                run = _of_heads(size, heads.stop - heads.start)
                before = [] if source is None else [each for _, each in source.runs(layer, heads) if each is not None]
                inputs = sum(
                    max((_padded_tokens(run, each.of(kind)) for each in before), default=run.chunk_tokens)
                    for kind in KINDS
                )
                held = F32_BYTES * inputs * _row(run)
                peaks.append(_layer_bytes(run, pair.keys, pair.values, held, measured, has_rope))
    return max(peaks, default=0)


def table_bytes(size: StreamSize, codecs: StreamCodecs) -> int:
    """Bytes of the tables of calibrated codecs, once for all streams."""
    num_heads = size.shape.num_kv_heads
    used = {
        (pair.of(kind), kind, layer, head)
        for chunk in _chunk_codecs(size, codecs)
        for layer in range(size.shape.num_layers)
        for heads, pair in chunk.runs(layer, slice(0, num_heads))
        if pair is not None and any(codec.needs_tables for codec in (pair.keys, pair.values))
        for kind in KINDS
        for head in range(heads.start, heads.stop)
    }
    return sum(codec.table_bytes(size.shape.page) for codec, *_ in used)


def _of_heads(size: StreamSize, num_heads: int) -> StreamSize:
    """A model with some of the KV heads: heads that are stored alike are written together, run by run."""
    if num_heads == size.shape.num_kv_heads:
        return size
    num_query_heads = size.num_query_heads // size.shape.num_kv_heads * num_heads
    return replace(size, shape=replace(size.shape, num_kv_heads=num_heads), num_query_heads=num_query_heads)


def _chunk_codecs(size: StreamSize, codecs: StreamCodecs) -> Iterator[ChunkCodecs]:
    """All codecs in which this stream's chunks are stored, by all heads that store them then."""
    for index in (size.window.max_chunks, 0):
        yield codecs.stored(index, 1, size.window)
        yield codecs.stored(index, 0, size.window)


def _layer_bytes(
    size: StreamSize, keys: CodecSpec, values: CodecSpec, inputs_bytes: int, measured: bool, has_rope: bool
) -> int:
    """`LayerStore.write`: keys are encoded, then values, then the quant error of the keys is measured."""
    is_rotated = has_rope and keys.stores_rotated
    held = inputs_bytes + (F32_BYTES * size.chunk_tokens * _row(size) if is_rotated else 0)
    records = size.shape.num_kv_heads * keys.num_pages(size.shape.page, size.chunk_tokens) * size.shape.page_bytes
    chunk = (size.shape.page, size.shape.num_kv_heads, size.chunk_tokens)
    peaks = [held + keys.encode_bytes(*chunk), held + records + values.encode_bytes(*chunk)]
    if measured and keys.is_quantized:
        peaks.append(held + records + _fit_bytes(size, keys, has_rope))
    return max(peaks)


def _fit_bytes(size: StreamSize, codec: CodecSpec, has_rope: bool) -> int:
    """The exact keys are rotated and scored; then the stored ones are decoded, rotated and scored."""
    num_heads, head_dim, num_tokens = size.shape.num_kv_heads, size.shape.head_dim, size.chunk_tokens
    buffer, keys = (F32_BYTES * tokens * _row(size) for tokens in (_padded_tokens(size, codec), num_tokens))
    num_queries = min(num_tokens, MEASURED_QUERIES) * (size.num_query_heads // num_heads)
    queries, scores = F32_BYTES * _row(size) * num_queries, F32_BYTES * num_heads * num_queries * num_tokens
    predicting = 3 * queries + queries // 2  # queries, squares, means of pairs
    decoding = buffer + codec.decode_bytes(size.shape.page, num_heads, num_tokens) + queries
    summing = scores + max(scores, queries)  # scaled queries, then exponentials
    if not has_rope or codec.stores_rotated:
        return max(predicting, decoding, 2 * queries + summing, buffer + queries + summing)
    rotating = buffer + keys + keys // 2 + F32_BYTES * num_tokens * head_dim + queries
    return max(predicting, decoding, rotating, keys + 2 * queries + summing)


def _row(size: StreamSize) -> int:
    """Values of one token in all KV heads."""
    return size.shape.num_kv_heads * size.shape.head_dim


def _padded_tokens(size: StreamSize, codec: CodecSpec) -> int:
    return codec.padded_tokens(size.shape.page, size.chunk_tokens)
