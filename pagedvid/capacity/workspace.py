"""Bytes beside the pages: the current chunk, the scratch of reading, the temporaries of a commit; tables of klt codecs.

The temporaries of a commit mirror attention/store.py and the codecs of quant/ step by step, for one layer of one
chunk, which is all that is alive at once. `pagedvid capacity --prove` measures them and fails when this file no longer
tells the truth. Activations of the model itself, its VAE and text encoder are not counted: that is what --reserve is
for.
"""

from __future__ import annotations

from collections.abc import Iterator

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.cards import StreamSize
from pagedvid.codecs.assignment import KINDS, ChunkCodecs
from pagedvid.codecs.page import is_quantized, read_codec

BF16_BYTES, F32_BYTES = 2, 4
MEASURED_QUERIES = 32
"""As in attention/measure.py, which imports PyTorch; a test compares the two."""
READING_FACTOR = 5
"""Of the scratch: the buffers, and about four times as much beside them (attention/torch_backend.py)."""
KLT_ENCODE_BYTES, KLT_DECODE_BYTES = 29, 21
"""Temporaries of a klt codec for each value of its pages, measured with the tables of the demo model."""


def current_bytes(size: StreamSize) -> int:
    """Queries, keys and values of the current chunk in BF16: one layer, all branches."""
    num_heads = size.num_query_heads + 2 * size.shape.num_kv_heads
    return BF16_BYTES * size.num_branches * size.current_tokens * num_heads * size.shape.head_dim


def scratch_bytes(size: StreamSize, codecs: StreamCodecs, scratch_setting_bytes: int) -> int:
    """What reading needs in the torch backend: the reused buffers and the temporaries of attention over them.

    One head of one chunk, decoded K and V in BF16, always fits in the buffers.
    """
    widest = max(_padded_tokens(size, codec) for codec in _stored_codecs(size, codecs))
    return READING_FACTOR * max(scratch_setting_bytes, 2 * BF16_BYTES * widest * size.shape.head_dim)


def commit_bytes(size: StreamSize, codecs: StreamCodecs, *, measured: bool, has_rope: bool) -> int:
    """Most bytes of temporaries while one layer of one chunk is stored; `measured`: alpha is fitted too.

    A chunk that leaves its `newest` codec is decoded into whole pages first; others arrive as they are.
    """
    newest = codecs.at_commit(size.window.max_chunks, size.window)
    peaks = []
    for chunk in _roles(size, codecs):
        source = newest if codecs.newest is not None and chunk != newest else None
        for layer in range(size.shape.num_layers):
            keys, values = (chunk.of(kind, layer) for kind in KINDS)
            inputs = F32_BYTES * sum(
                size.chunk_tokens if source is None else _padded_tokens(size, source.of(kind, layer)) for kind in KINDS
            )
            peaks.append(_layer_bytes(size, keys, values, inputs * _row(size), measured, has_rope))
    return max(peaks)


def table_bytes(size: StreamSize, codecs: StreamCodecs) -> int:
    """What klt codecs keep of the model, once for all streams (`KltCoding`): two matrices, the order of coefficients.

    All N coefficients are counted as coded; numbers are float32, places int64.
    """
    head_dim = size.shape.head_dim
    num_coefficients = head_dim * size.shape.frames_per_block
    per_head = F32_BYTES * (2 * head_dim**2 + 2 * head_dim + 2 * num_coefficients) + 3 * 8 * num_coefficients
    names = {
        (name, kind, layer)
        for chunk in _roles(size, codecs)
        for kind in KINDS
        for layer in range(size.shape.num_layers)
        if read_codec(name := chunk.of(kind, layer)).family == "klt"
    }
    return len(names) * size.shape.num_kv_heads * per_head


def _roles(size: StreamSize, codecs: StreamCodecs) -> Iterator[ChunkCodecs]:
    """The codecs of all roles that this stream's chunks play."""
    yield codecs.steady
    yield codecs.at_commit(size.window.max_chunks, size.window)
    if size.window.sink_chunks:
        yield codecs.final(0, size.window)


def _stored_codecs(size: StreamSize, codecs: StreamCodecs) -> set[str]:
    return {name for chunk in _roles(size, codecs) for name in chunk.names(size.shape.num_layers)}


def _layer_bytes(size: StreamSize, keys: str, values: str, inputs_bytes: int, measured: bool, has_rope: bool) -> int:
    """`LayerStore.write`: keys are encoded, then values, then the noise of the keys is looked at."""
    is_turned = has_rope and read_codec(keys).stores_rotated
    held = inputs_bytes + (F32_BYTES * size.chunk_tokens * _row(size) if is_turned else 0)
    records = _record_bytes(size, keys)
    peaks = [held + _encode_bytes(size, keys), held + records + _encode_bytes(size, values)]
    if measured and is_quantized(keys):
        peaks.append(held + records + _fit_bytes(size, keys, has_rope))
    return max(peaks)


def _encode_bytes(size: StreamSize, codec: str) -> int:
    """`Codec.encode`: what it makes, and what it needs for that."""
    name, row = read_codec(codec), _row(size)
    padded, stored, records = _padded_tokens(size, codec) * row, size.chunk_tokens * row, _record_bytes(size, codec)
    if name.family == "klt":
        return KLT_ENCODE_BYTES * padded + records
    if name.family == "raw":
        width = int(name.bits) // 8
        copy = 0 if width == F32_BYTES else width * stored
        return copy + max((width + 3) * stored, width * padded + records)  # isfinite: |x| and three masks
    # Values in float32, their codes in bytes, the packed codes; then these once more as records.
    joining = (F32_BYTES + 1) * padded + int(padded * name.bits) // 8 + records
    if name.family == "channel":  # low, high, step and divisor in float32, zero and step in fp16
        return joining + 20 * size.shape.num_kv_heads * _num_pages(size, codec) * size.shape.head_dim
    turned = F32_BYTES * stored if name.family == "hadamard" else 0
    return joining + turned + 40 * padded // name.group


def _decode_bytes(size: StreamSize, codec: str) -> int:
    """`Codec.decode`, beside the buffer that it fills."""
    name, row = read_codec(codec), _row(size)
    padded, stored = _padded_tokens(size, codec) * row, size.chunk_tokens * row
    if name.family == "klt":
        return KLT_DECODE_BYTES * padded
    if name.family == "hadamard":
        return F32_BYTES * (padded + stored)
    if name.family == "token":
        return padded + 8 * padded // name.group
    # Codes in bytes; step, zero, and the step of every bit field in float32.
    numbers = F32_BYTES * (2 + 8 // int(name.bits)) * _num_pages(size, codec) * size.shape.num_kv_heads
    return padded + numbers * size.shape.head_dim


def _fit_bytes(size: StreamSize, codec: str, has_rope: bool) -> int:
    """The exact keys are rotated and scored; then the stored ones are decoded, rotated and scored."""
    num_heads, head_dim, num_tokens = size.shape.num_kv_heads, size.shape.head_dim, size.chunk_tokens
    buffer, keys = (F32_BYTES * tokens * _row(size) for tokens in (_padded_tokens(size, codec), num_tokens))
    num_queries = min(num_tokens, MEASURED_QUERIES) * (size.num_query_heads // num_heads)
    queries, scores = F32_BYTES * _row(size) * num_queries, F32_BYTES * num_heads * num_queries * num_tokens
    predicting = 3 * queries + queries // 2  # queries, squares, means of pairs
    decoding = buffer + _decode_bytes(size, codec) + queries
    summing = scores + max(scores, queries)  # scaled queries, then exponentials
    if not has_rope or read_codec(codec).stores_rotated:
        return max(predicting, decoding, 2 * queries + summing, buffer + queries + summing)
    rotating = buffer + keys + keys // 2 + F32_BYTES * num_tokens * head_dim + queries
    return max(predicting, decoding, rotating, keys + 2 * queries + summing)


def _row(size: StreamSize) -> int:
    """Values of one token in all KV heads."""
    return size.shape.num_kv_heads * size.shape.head_dim


def _num_pages(size: StreamSize, codec: str) -> int:
    """Pages of the keys (or values) of one KV head."""
    return size.shape.page.num_pages(size.chunk_tokens, codec)


def _record_bytes(size: StreamSize, codec: str) -> int:
    """Encoded keys (or values) of one layer."""
    return size.shape.num_kv_heads * _num_pages(size, codec) * size.shape.page_bytes


def _padded_tokens(size: StreamSize, codec: str) -> int:
    return size.shape.page.padded_tokens(size.chunk_tokens, codec)
