"""What `step.attend` must return, computed slowly in float64 from the bytes of the pages.

Nothing of the package's layer call, grouping, decoding or rotation is used: tests/codecs/page_reader.py reads the
pages, and rotation is a product of complex numbers in the channel layout of the model. Only the bias itself is the
package's (tests/correction/test_formula.py compares it with its definition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.chunk import Chunk
from pagedvid.correction.formula import bias
from pagedvid.paged_kv_cache import PagedKVCache
from tests.codecs.constant import VALUE
from tests.codecs.page_reader import read_pages

RAW_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TableRope:
    """Rotary tables of one angle per position and pair."""

    layout: str
    head_dim: int

    def angles(self, first_token: int, num_tokens: int) -> Tensor:
        """exp(i angle), complex128 [num_tokens, D/2]."""
        frequencies = 20.0 ** -torch.linspace(0, 1.5, self.head_dim // 2, dtype=torch.float64)
        angles = torch.arange(first_token, first_token + num_tokens)[:, None] * frequencies
        return torch.polar(torch.ones_like(angles), angles)

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        angles = self.angles(first_token, num_tokens)
        return angles.real.float(), angles.imag.float()


def rotate(
    x_nHD: Tensor, rope: TableRope | None, first_token: int, layout: str | None = None, *, backwards: bool = False
) -> Tensor:
    """x rotated by its positions, float64, in its own layout (`layout`: another one than the rope's)."""
    x = x_nHD.double()
    if rope is None:
        return x
    angles = rope.angles(first_token, len(x)).unsqueeze(1)
    angles = angles.conj() if backwards else angles
    if (layout or rope.layout) == "half":
        rotated = torch.complex(*x.chunk(2, dim=-1)) * angles
        return torch.cat([rotated.real, rotated.imag], dim=-1)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * angles).flatten(-2)


def pairs_together(x: Tensor, rope: TableRope | None) -> Tensor:
    """Channels in half layout, in which keys are stored."""
    if rope is None or rope.layout == "half":
        return x
    return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)


def read_table(cache: PagedKVCache, chunk: Chunk, kind: str, layer: int, head: int) -> tuple[Tensor, Tensor | None]:
    """Stored keys or values of one head and their step sizes, float64 [n, D]; None: the codec has none."""
    head_dim = cache.spec.head_dim
    first = (("keys", "values").index(kind) * cache.spec.num_layers + layer) * cache.spec.num_kv_heads
    begin, end = chunk.table.indptr[first + head : first + head + 2]
    pages = torch.from_numpy(chunk.table.ids[begin:end].astype(np.int64))
    records, name = cache.pool.records[pages].unsqueeze(0), stored_as(chunk, kind, layer, head)
    if name == "constant":
        return torch.full((chunk.num_tokens, head_dim), VALUE, dtype=torch.float64), None
    if name in RAW_DTYPES:
        values = records.contiguous().view(RAW_DTYPES[name]).view(-1, head_dim)
        return values[: chunk.num_tokens].double(), None
    if name.startswith("klt"):
        codec = cache.book.codec(chunk.codecs.at(layer, head).of(kind), kind, layer, (head,))
        room = torch.empty(1, codec.spec.padded_tokens(cache.spec.shape.page, chunk.num_tokens), head_dim)
        return codec.decode(records, chunk.num_tokens, room)[0].double(), None
    grid = read_pages(records, cache.spec.shape.page, name, chunk.num_tokens)
    values = torch.from_numpy(np.ascontiguousarray(grid.values[0]))
    if name.startswith("hadamard"):
        values = values @ hadamard(head_dim)
    return values, torch.from_numpy(np.ascontiguousarray(grid.step_sizes[0]))


def stored_as(chunk: Chunk, kind: str, layer: int, head: int) -> str | None:
    """Name of the codec in which a head keeps its keys or values; None: it keeps nothing."""
    pair = chunk.codecs.at(layer, head)
    return None if pair is None else pair.of(kind).name


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix of a power of two, orthonormal, float64."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix / size**0.5


def read_head(cache: PagedKVCache, chunk: Chunk, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Stored keys, values and the keys' step sizes of one head, float64 [n, D]; None: the codec has none."""
    keys, step_sizes = read_table(cache, chunk, "keys", layer, head)
    return keys, read_table(cache, chunk, "values", layer, head)[0], step_sizes


def read_chunk(cache: PagedKVCache, chunk: Chunk, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same of all heads, which are stored alike, float64 [H, n, D]."""
    keys, values, step_sizes = zip(
        *(read_head(cache, chunk, layer, h) for h in range(cache.spec.num_kv_heads)), strict=True
    )
    return torch.stack(keys), torch.stack(values), None if step_sizes[0] is None else torch.stack(step_sizes)


def stores_rotated(codec: str) -> bool:
    """Whether pages hold keys as they are after rotary embedding."""
    return codec.endswith("-post") or codec.startswith(("token", "hadamard"))


def squares(q_GTD: Tensor, codec: str, has_rope: bool) -> Tensor:
    """Squared components of rotated half-layout queries, as they multiply a key's quant error, float64 [G, T, D]."""
    if codec.startswith("hadamard"):
        q_GTD = q_GTD @ hadamard(q_GTD.shape[-1])
    square = q_GTD.square()
    if has_rope and not stores_rotated(codec):
        first, second = square.chunk(2, dim=-1)
        square = torch.cat([first + second, first + second], dim=-1) / 2
    return square


def chunk_bias(cache: PagedKVCache, q_GTD: Tensor, step_size_nD: Tensor, has_rope: bool, codec: str = "int2") -> Tensor:
    """b of one chunk and KV head for rotated half-layout queries [G, T, D], float64 [G, T]."""
    square = squares(q_GTD, codec, has_rope)
    return bias(square.flatten(0, 1), step_size_nD.square().mean(0), cache.spec.scale).view(square.shape[:2])


def variance_bias(cache: PagedKVCache, q_GTD: Tensor, change_D: Tensor, has_rope: bool, codec: str) -> Tensor:
    """b from the change of variance of each channel: gains as uniform errors, losses to second order."""
    plain = codec if not codec.startswith("hadamard") else "token2-g64"
    square = squares(q_GTD, plain, has_rope)
    gains = bias(square.flatten(0, 1), 12 * change_D.clamp(min=0), cache.spec.scale).view(square.shape[:2])
    return gains + cache.spec.scale**2 / 2 * square @ change_D.clamp(max=0)


def page_parts(cache: PagedKVCache, chunk: Chunk, layer: int, head: int = 0) -> tuple[int, ...]:
    """Tokens of every page of the keys of one head."""
    size = chunk.codecs.at(layer, head).keys.page_tokens(cache.spec.shape.page)
    starts = range(0, chunk.num_tokens, size)
    return tuple(min(size, chunk.num_tokens - start) for start in starts)


def correction(
    cache: PagedKVCache,
    chunk: Chunk,
    layer: int,
    head: int,
    q_GTD: Tensor,
    has_rope: bool,
    step_size_nD: Tensor | None,
    parts: Sequence[int],
) -> Tensor:
    """What is subtracted from the scores of one chunk and KV head, [G, T, n] or [G, T, 1]. `parts`: the tokens of the
    parts that have a b of their own, where it comes from step sizes."""
    codec, mode = stored_as(chunk, "keys", layer, head), cache.spec.correction
    if mode == "off" or codec in RAW_DTYPES:
        return torch.zeros(1)
    alpha = float(chunk.alpha[layer, head]) if mode == "measured" else 1.0
    if mode == "variance" or step_size_nD is None:
        b = variance_bias(cache, q_GTD, chunk.variance[layer, head].double(), has_rope, codec)
        return alpha * b.unsqueeze(-1)
    b = [
        chunk_bias(cache, q_GTD, part_nD, has_rope, codec)[..., None].expand(-1, -1, len(part_nD))
        for part_nD in step_size_nD.split(list(parts))
    ]
    return alpha * torch.cat(b, dim=-1)


def balanced_alpha(log_odds: Tensor, shift: Tensor, b: Tensor) -> Tensor:
    """The factor on b >= 0 that leaves the mean share as it was, found by bisection, and as far from 1 as the products
    of different queries agree; all float64 [Q]."""
    before, after = log_odds.clamp(-10, 10), log_odds.clamp(-10, 10) + shift
    low, high = -100.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        is_too_heavy = torch.sigmoid(after - middle * b).mean() > torch.sigmoid(before).mean()
        low, high = (middle, high) if is_too_heavy else (low, middle)
    left = torch.sigmoid(after - b) - torch.sigmoid(before)
    pairs, count = torch.outer(left, left), len(left)
    others = (pairs.sum() - pairs.trace()) / (count * (count - 1)) if count > 1 else torch.zeros(())
    return 1 + (others / pairs.mean()).clamp(min=0) * (low - 1)


def expected_attention(
    cache: PagedKVCache,
    step: Step,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: TableRope | None = None,
    *,
    by_page: bool = False,
) -> Tensor:
    """[T, Hq, D] float64. `q`, `k`: before rotary embedding, in the layout of the rope. b is that of a chunk's runs of
    pages, if it has any, else that of the chunk; `by_page`: that of every page."""
    spec = cache.spec
    group = spec.query_heads // spec.num_kv_heads
    out = torch.empty(q.shape, dtype=torch.float64)
    current = [
        (rotate(k[r.start : r.stop], rope, r.first_token), v[r.start : r.stop].double()) for r in step.plan.ranges
    ]
    for range_ in step.plan.ranges:
        q_range = pairs_together(rotate(q[range_.start : range_.stop], rope, range_.first_token), rope)
        for head in range(spec.num_kv_heads):
            q_GTD = q_range[:, head * group : (head + 1) * group].transpose(0, 1)
            scores, values = [], []
            for read in range_.reads:
                if stored_as(read.chunk, "keys", layer, head) is None:
                    continue
                k_nD, v_nD, step_size_nD = read_head(cache, read.chunk, layer, head)
                k_plain = k_nD.unsqueeze(1)
                if stores_rotated(stored_as(read.chunk, "keys", layer, head)):
                    k_plain = rotate(k_plain, rope, read.chunk.position, layout="half", backwards=True)
                k_rotated = rotate(k_plain, rope, read.first_token, layout="half").squeeze(1)
                parts = read.chunk.runs.get(layer, (read.chunk.num_tokens,))
                if by_page:
                    parts = page_parts(cache, read.chunk, layer, head)
                b = correction(cache, read.chunk, layer, head, q_GTD, rope is not None, step_size_nD, parts)
                scores.append(spec.scale * q_GTD @ k_rotated.T - b)
                values.append(v_nD)
            for number in range_.current:
                k_current, v_current = current[number]
                scores.append(spec.scale * q_GTD @ pairs_together(k_current[:, head], rope).T)
                values.append(v_current[:, head])
            attention = torch.softmax(torch.cat(scores, dim=-1), dim=-1)
            out[range_.start : range_.stop, head * group : (head + 1) * group] = (
                attention @ torch.cat(values)
            ).transpose(0, 1)
    return out


def as_arriving(cache: PagedKVCache, step: Step, x: Tensor, rope: TableRope | None) -> Tensor:
    """Queries or keys as the host passes them: rotated already if the cache was made for that."""
    if rope is None or cache.spec.keys_arrive == "before_rotary":
        return x
    parts = [rotate(x[r.start : r.stop], rope, r.first_token) for r in step.plan.ranges]
    return torch.cat(parts).to(x.dtype)


def random_qkv(cache: PagedKVCache, num_tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> Sequence[Tensor]:
    """q, k, v of one layer; channels of k differ in size and offset, as in real models."""
    spec, generator = cache.spec, torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(num_tokens, heads, spec.head_dim, generator=generator)
        for heads in (spec.query_heads, spec.num_kv_heads, spec.num_kv_heads)
    )
    k = k * torch.linspace(0.3, 1.5, spec.head_dim) + torch.linspace(-1, 1, spec.head_dim)
    return q.to(dtype), k.to(dtype), v.to(dtype)
