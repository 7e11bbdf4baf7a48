"""Bytes besides the pages: the current chunk, the scratch for reading, the temporaries of a commit, and codec tables.

The temporaries of a commit are those of attention/store.py for one layer of one chunk, as no more exist at once; those
of encoding and decoding come from each codec (`CodecSpec`). `pagedvid capacity --prove` measures them and fails when
they no longer match this file. Activations of the model itself, its VAE and text encoder are not counted: that is what
--reserve is for.
"""

from __future__ import annotations

from dataclasses import replace

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.cards import StreamSize
from pagedvid.codecs.assignment import KINDS, ChunkCodecs, Heads, are_neighbours
from pagedvid.codecs.spec import F32_BYTES, CodecSpec, PageFormat
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
            kept = tuple(head for head in _every_head(size) if chunk.at(layer, head) is not None)
            held = sum(_input_bytes(size, source, kind, layer, kept) for kind in KINDS)
            for heads, codec in chunk.groups("keys", layer, kept):
                peaks.append(held + _keys_bytes(size, heads, codec, measured, has_rope))
            for heads, codec in chunk.groups("values", layer, kept):
                peaks.append(held + _copy_bytes(size, heads) + codec.encode_bytes(*_chunk(size, heads)))
    return max(peaks, default=0)


def table_bytes(size: StreamSize, codecs: StreamCodecs) -> int:
    """Bytes of the tables of calibrated codecs, once for all streams."""
    used = {
        (codec, kind, layer, head)
        for chunk in _chunk_codecs(size, codecs)
        for layer in range(size.shape.num_layers)
        for kind in KINDS
        for heads, codec in chunk.groups(kind, layer, _every_head(size))
        if codec.needs_tables
        for head in heads
    }
    return sum(codec.table_bytes(size.shape.page) for codec, *_ in used)


def _every_head(size: StreamSize) -> Heads:
    return tuple(range(size.shape.num_kv_heads))


def _chunk_codecs(size: StreamSize, codecs: StreamCodecs) -> set[ChunkCodecs]:
    """All codecs in which this stream's chunks are stored, by all heads that store them then; mostly one."""
    return {codecs.stored(index, age, size.window) for index in (size.window.max_chunks, 0) for age in (1, 0)}


def _input_bytes(size: StreamSize, source: ChunkCodecs | None, kind: str, layer: int, heads: Heads) -> int:
    """The exact keys or values of a layer."""
    before = () if source is None else source.groups(kind, layer, heads)
    num_tokens = max((_padded_tokens(size, codec) for _, codec in before), default=size.chunk_tokens)
    return F32_BYTES * num_tokens * len(heads) * size.shape.head_dim


def _copy_bytes(size: StreamSize, heads: Heads) -> int:
    """Heads are copied from the inputs unless they are neighbours."""
    return 0 if are_neighbours(heads) else F32_BYTES * size.chunk_tokens * len(heads) * size.shape.head_dim


def _chunk(size: StreamSize, heads: Heads) -> tuple[PageFormat, int, int]:
    """What a codec is given."""
    return size.shape.page, len(heads), size.chunk_tokens


def _keys_bytes(size: StreamSize, heads: Heads, codec: CodecSpec, measured: bool, has_rope: bool) -> int:
    """Keys that share a codec are encoded, then their quant error is measured; `LayerStore` in attention/store.py."""
    held = _copy_bytes(size, heads)
    if has_rope and codec.stores_rotated:
        held += F32_BYTES * size.chunk_tokens * len(heads) * size.shape.head_dim
    encoding = codec.encode_bytes(*_chunk(size, heads))
    if not (measured and codec.is_quantized):
        return held + encoding
    records = len(heads) * codec.num_pages(size.shape.page, size.chunk_tokens) * size.shape.page_bytes
    return held + max(encoding, records + _fit_bytes(_of_heads(size, len(heads)), codec, has_rope))


def _of_heads(size: StreamSize, num_heads: int) -> StreamSize:
    """A model with some of the KV heads."""
    if num_heads == size.shape.num_kv_heads:
        return size
    num_query_heads = size.num_query_heads // size.shape.num_kv_heads * num_heads
    return replace(size, shape=replace(size.shape, num_kv_heads=num_heads), num_query_heads=num_query_heads)


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
