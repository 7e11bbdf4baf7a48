"""Bytes that come and go beside the pages: the current chunk, the scratch of reading, the temporaries of a commit.

The temporaries of a commit mirror attention/commit.py and quant/codec.py step by step, for one layer of one chunk,
which is all that is alive at once. `pagedvid capacity --prove` measures them and fails when this file no longer tells
the truth. Activations of the model itself, its VAE and text encoder are not counted: that is what --reserve is for.
"""

from __future__ import annotations

from pagedvid.capacity.history import StreamSize
from pagedvid.geometry import (
    BITS_PER_VALUE,
    RoleCodecs,
    is_quantized,
    page_bytes,
    page_tokens,
    pages_for_tokens,
)

BF16_BYTES, F32_BYTES = 2, 4
MEASURED_QUERIES = 128
"""As in attention/commit.py, which imports PyTorch; a test compares the two."""
READING_FACTOR = 5
"""Of the scratch: the buffers, and about four times as much beside them (attention/torch_backend.py)."""


def current_bytes(size: StreamSize) -> int:
    """Queries, keys and values of the current chunk in BF16: one layer, all branches."""
    num_heads = size.num_query_heads + 2 * size.shape.num_kv_heads
    return BF16_BYTES * size.num_branches * size.current_tokens * num_heads * size.shape.head_dim


def scratch_bytes(size: StreamSize, codecs: RoleCodecs, scratch_setting_bytes: int) -> int:
    """What reading needs in the torch backend: the reused buffers and the temporaries of attention over them.

    One head of one chunk, decoded K and V in BF16, always fits in the buffers.
    """
    widest = max(_padded_tokens(size.chunk_tokens, codec) for codec in _stored_codecs(size, codecs))
    return READING_FACTOR * max(scratch_setting_bytes, 2 * BF16_BYTES * widest * size.shape.head_dim)


def commit_bytes(size: StreamSize, codecs: RoleCodecs, *, measured: bool, has_rope: bool) -> int:
    """Most bytes of temporaries while one layer of one chunk is stored; `measured`: alpha is fitted too.

    A chunk that leaves its `newest` codec is decoded into whole pages first; others arrive as they are.
    """
    peaks = []
    for codec in _stored_codecs(size, codecs):
        is_recoded = codecs.newest not in (None, codec)
        tokens = _padded_tokens(size.chunk_tokens, str(codecs.newest)) if is_recoded else size.chunk_tokens
        peaks.append(_encode_bytes(size, codec, tokens))
        if measured and is_quantized(codec):
            peaks.append(_fit_bytes(size, codec, tokens, has_rope))
    return max(peaks)


def _stored_codecs(size: StreamSize, codecs: RoleCodecs) -> set[str]:
    """The codecs of all roles that this stream's chunks play."""
    sink = codecs.sink if size.window.sink_chunks else None
    return {codec for codec in (codecs.history, sink, codecs.newest) if codec is not None}


def _encode_bytes(size: StreamSize, codec: str, inputs_tokens: int) -> int:
    """`Codec.encode` of the values, while the encoded keys wait."""
    row = size.shape.num_kv_heads * size.shape.head_dim
    inputs, records = 2 * F32_BYTES * inputs_tokens * row, _record_bytes(size, codec)
    if is_quantized(codec):
        pages = size.shape.num_kv_heads * pages_for_tokens(size.chunk_tokens, codec)
        padded = _padded_tokens(size.chunk_tokens, codec) * row
        packed = padded * BITS_PER_VALUE[codec] // 8
        # low, high and divisor in float32; zero and step in fp16
        channels = (3 * F32_BYTES + 2 * 2) * pages * size.shape.head_dim
        joined = 2 * packed if BITS_PER_VALUE[codec] < 8 else packed + records
        return inputs + records + F32_BYTES * padded + padded + joined + channels
    stored = size.chunk_tokens * row
    width = BITS_PER_VALUE[codec] // 8
    copy = 0 if width == F32_BYTES else width * stored
    return inputs + records + copy + width * stored + 3 * stored  # isfinite: |x| and three masks


def _fit_bytes(size: StreamSize, codec: str, inputs_tokens: int, has_rope: bool) -> int:
    """`measure_alpha`: while keys are rotated, or while scores are summed, whichever is more."""
    num_heads, head_dim = size.shape.num_kv_heads, size.shape.head_dim
    row = F32_BYTES * num_heads * head_dim
    held = 2 * row * inputs_tokens + 2 * _record_bytes(size, codec)
    padded, num_tokens = _padded_tokens(size.chunk_tokens, codec), size.chunk_tokens
    num_queries = min(size.chunk_tokens, MEASURED_QUERIES) * (size.num_query_heads // num_heads)
    queries, scores = row * num_queries, F32_BYTES * num_heads * num_queries * num_tokens
    tables = F32_BYTES * num_tokens * head_dim
    if has_rope:
        summing = held + 2 * row * num_tokens + tables + 2 * scores + 3 * queries
        rotating = held + row * padded + 2 * row * num_tokens + row * num_tokens // 2 + tables + queries
        return max(summing, rotating)
    return held + row * padded + 2 * scores + 3 * queries


def _record_bytes(size: StreamSize, codec: str) -> int:
    """Encoded keys (or values) of one layer."""
    return size.shape.num_kv_heads * pages_for_tokens(size.chunk_tokens, codec) * page_bytes(size.shape.head_dim)


def _padded_tokens(num_tokens: int, codec: str) -> int:
    return pages_for_tokens(num_tokens, codec) * page_tokens(codec)
