"""Bytes besides the pages: the current chunk, the scratch for reading, the temporaries of a commit, and codec tables.

The temporaries of a commit are those of attention/store.py for one layer of one chunk, as no more exist at once, and
what the layers of that chunk share; those of encoding and decoding come from each codec (`CodecSpec`). `pagedvid
capacity --prove` measures them and fails when they no longer match this file. Activations of the model itself, its VAE
and text encoder are not counted, nor what several devices exchange: that is what --reserve is for.
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
EFFECT_NUMBERS = 3
"""Numbers of each sampled query, head and layer that alpha is fitted to: `Effect` in attention/measure.py."""
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
    shared, peaks = [], []
    for chunk in _chunk_codecs(size, codecs):
        source = newest if codecs.newest is not None and chunk != newest else None
        shared.append(_shared_bytes(size, chunk, source, measured, has_rope))
        for layer in range(size.shape.num_layers):
            peaks.append(_layer_bytes(size, chunk, source, layer, measured, has_rope))
    return max(shared) + max(peaks)


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


def _shared_bytes(
    size: StreamSize, chunk: ChunkCodecs, source: ChunkCodecs | None, measured: bool, has_rope: bool
) -> int:
    """What is kept from layer to layer: angles of the positions, and what alpha is fitted to."""
    codecs = chunk.used(size.shape.num_layers, size.shape.num_kv_heads, ("keys",))
    fits = measured and any(codec.is_quantized for codec in codecs)
    effects = EFFECT_NUMBERS * F32_BYTES * size.shape.num_layers * size.num_query_heads * _num_sampled(size)
    num_positions = 0
    if has_rope and (fits or any(codec.stores_rotated for codec in codecs)):
        num_positions = 2 if fits and source is not None else 1  # the queries' own chunk is rotated, too
    angles = F32_BYTES * size.chunk_tokens * size.shape.head_dim  # cos and sin of each pair of channels
    return num_positions * angles + (effects if fits else 0)


def _layer_bytes(
    size: StreamSize, chunk: ChunkCodecs, source: ChunkCodecs | None, layer: int, measured: bool, has_rope: bool
) -> int:
    """Most bytes while one layer is stored; `source`: the codecs of a chunk that was stored before, and is read."""
    kept = tuple(head for head in _every_head(size) if chunk.at(layer, head) is not None)
    held, peaks = 0, [0]
    for kind in KINDS:
        before = () if source is None else source.groups(kind, layer, kept)
        num_tokens = max((_padded_tokens(size, codec) for _, codec in before), default=size.chunk_tokens)
        held += F32_BYTES * num_tokens * len(kept) * size.shape.head_dim
        for heads, codec in before:
            peaks.append(held + _record_bytes(size, heads, codec) + codec.decode_bytes(*_chunk(size, heads)))
    for kind in KINDS:
        for heads, codec in chunk.groups(kind, layer, kept):
            if _keeps_codec(source, kind, layer, heads, codec):
                storing = _record_bytes(size, heads, codec)
            elif kind == "keys":
                storing = _keys_bytes(size, heads, codec, source, measured, has_rope)
            else:
                storing = codec.encode_bytes(*_chunk(size, heads))
            peaks.append(held + _copy_bytes(size, heads) + storing)
    return max(peaks, default=0)


def _keeps_codec(source: ChunkCodecs | None, kind: str, layer: int, heads: Heads, codec: CodecSpec) -> bool:
    """Whether records are copied, as these heads had the codec before. Rotated keys may have moved: not counted on."""
    if source is None or (kind == "keys" and codec.stores_rotated):
        return False
    return source.groups(kind, layer, heads) == ((heads, codec),)


def _copy_bytes(size: StreamSize, heads: Heads) -> int:
    """Heads are copied from the inputs unless they are neighbours."""
    return 0 if are_neighbours(heads) else F32_BYTES * size.chunk_tokens * len(heads) * size.shape.head_dim


def _record_bytes(size: StreamSize, heads: Heads, codec: CodecSpec) -> int:
    """Pages as they are read: copies."""
    return len(heads) * codec.num_pages(size.shape.page, size.chunk_tokens) * size.shape.page_bytes


def _chunk(size: StreamSize, heads: Heads) -> tuple[PageFormat, int, int]:
    """What a codec is given."""
    return size.shape.page, len(heads), size.chunk_tokens


def _keys_bytes(
    size: StreamSize, heads: Heads, codec: CodecSpec, source: ChunkCodecs | None, measured: bool, has_rope: bool
) -> int:
    """Keys that share a codec are encoded, then their quant error is measured; `LayerStore` in attention/store.py."""
    of_heads = _of_heads(size, len(heads))
    rotated = F32_BYTES * size.chunk_tokens * _row(of_heads) if has_rope and codec.stores_rotated else 0
    encoding = codec.encode_bytes(*_chunk(size, heads))
    if not (measured and codec.is_quantized):
        return rotated + encoding
    scoring_own = 0 if source is None else _own_chunk_bytes(of_heads, has_rope)
    return rotated + max(encoding, scoring_own, _fit_bytes(of_heads, codec, has_rope))


def _of_heads(size: StreamSize, num_heads: int) -> StreamSize:
    """A model with some of the KV heads."""
    if num_heads == size.shape.num_kv_heads:
        return size
    num_query_heads = size.num_query_heads // size.shape.num_kv_heads * num_heads
    return replace(size, shape=replace(size.shape, num_kv_heads=num_heads), num_query_heads=num_query_heads)


def _own_chunk_bytes(size: StreamSize, has_rope: bool) -> int:
    """The keys of the queries' own chunk, which is another than the stored one, are rotated and scored."""
    keys, queries, summing = F32_BYTES * size.chunk_tokens * _row(size), _query_bytes(size), _summing_bytes(size)
    return keys + queries + (max(keys + keys // 2, keys + summing) if has_rope else summing)


def _fit_bytes(size: StreamSize, codec: CodecSpec, has_rope: bool) -> int:
    """The exact keys are rotated and scored; then the stored ones are decoded, rotated and scored."""
    num_heads, num_tokens = size.shape.num_kv_heads, size.chunk_tokens
    buffer, keys = (F32_BYTES * tokens * _row(size) for tokens in (_padded_tokens(size, codec), num_tokens))
    queries, summing = _query_bytes(size), _summing_bytes(size)
    records = _record_bytes(size, _every_head(size), codec)
    square_step_sizes = F32_BYTES * _row(size) if codec.has_step_sizes else 0
    predicting = 3 * queries + queries // 2  # queries, squares, means of pairs
    decoding = buffer + records + codec.decode_bytes(size.shape.page, num_heads, num_tokens) + queries
    if not has_rope or codec.stores_rotated:
        scoring = buffer + 2 * queries + _score_bytes(size)  # as they are, and scaled; the buffer is dropped then
        return square_step_sizes + max(predicting, decoding, 2 * queries + summing, scoring)
    rotating = buffer + keys + keys // 2 + queries
    return square_step_sizes + max(predicting, decoding, rotating, keys + 2 * queries + summing)


def _query_bytes(size: StreamSize) -> int:
    """The sampled queries."""
    return F32_BYTES * size.num_query_heads * _num_sampled(size) * size.shape.head_dim


def _score_bytes(size: StreamSize) -> int:
    """Their scores over a chunk."""
    return F32_BYTES * size.num_query_heads * _num_sampled(size) * size.chunk_tokens


def _summing_bytes(size: StreamSize) -> int:
    """Scores, and scaled queries, then exponentials."""
    return _score_bytes(size) + max(_score_bytes(size), _query_bytes(size))


def _num_sampled(size: StreamSize) -> int:
    return min(size.chunk_tokens, MEASURED_QUERIES)


def _row(size: StreamSize) -> int:
    """Values of one token in all KV heads."""
    return size.shape.num_kv_heads * size.shape.head_dim


def _padded_tokens(size: StreamSize, codec: CodecSpec) -> int:
    return codec.padded_tokens(size.shape.page, size.chunk_tokens)
