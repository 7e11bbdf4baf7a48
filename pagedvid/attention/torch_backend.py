"""The backend that runs anywhere PyTorch does. It never holds a dense window: chunk by chunk, and where chunks are
large a few heads at a time, pages are decoded into a small reused scratch, rotated, attended, corrected and merged.

PyTorch's own flash kernel for the CPU is called directly, because it returns the log-sum-exp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.groups import CurrentSource, PagedSource, RangeBatch, group_ranges
from pagedvid.attention.partial import Partial, merge
from pagedvid.cache.plan import RangePlan, StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.geometry import page_tokens, pages_for_tokens
from pagedvid.quant.codec import get_codec
from pagedvid.quant.correction import bias
from pagedvid.quant.rotary import RopeTables, pair_mean_square, rotate


def unsupported_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
    """Why this backend cannot run here; empty when it can."""
    reasons = []
    if device.type not in ("cpu", "cuda"):
        reasons.append(f"no flash kernel with log-sum-exp for device {device.type}")
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        reasons.append(f"torch {torch.__version__} lacks the flash kernel for the CPU; 2.6 or newer has it")
    return reasons


@dataclass
class _Prepared:
    batches: list[RangeBatch]
    has_rope: bool


class TorchBackend:
    """See the module docstring.

    `scratch_bytes` bounds the decoded keys and values, though one head of one chunk always fits; temporaries of the
    arithmetic come on top, about as much again.
    """

    name = "torch"

    def __init__(self, pool: PagePool, spec: CacheSpec, scratch_bytes: int) -> None:
        self._pool = pool
        self._spec = spec
        self._scratch_bytes = scratch_bytes
        self._buffers: dict[str, Tensor] = {}

    def prepare(self, plan: StepPlan, rope: RopeTables | None, dtype: torch.dtype) -> _Prepared:
        """See `AttentionBackend.prepare`."""
        batches = group_ranges(
            plan, rope, dtype, lambda range_: self._scratch_bytes // self._range_bytes(range_, dtype)
        )
        return _Prepared(batches, rope is not None)

    def attend(self, prepared: _Prepared, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        """See `AttentionBackend.attend`."""
        num_heads, group = self._spec.num_kv_heads, self._spec.query_heads // self._spec.num_kv_heads
        q_THGD = q_THD.unflatten(1, (num_heads, group))
        out_THGD = torch.empty_like(q_THGD)
        for batch in prepared.batches:
            for heads in self._head_tiles(batch, q_THD.dtype):
                tile = _Tile(self._pool, self._spec, self._buffers, prepared.has_rope, layer, heads)
                q = _head_major(q_THGD[:, heads][batch.tokens])
                out = tile.attend(q, batch, k_THD[:, heads], v_THD[:, heads])
                out_ETHGD = out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4)
                out_THGD[:, heads].index_copy_(0, batch.tokens.flatten(), out_ETHGD.flatten(0, 1).to(out_THGD.dtype))
        return out_THGD.flatten(1, 2)

    def _range_bytes(self, range_: RangePlan, dtype: torch.dtype) -> int:
        """Decoded K and V of the largest chunk that the range reads, over all heads."""
        largest = max(
            (self._padded_tokens(read.chunk.num_tokens, read.chunk.codec) for read in range_.reads),
            default=range_.num_tokens,
        )
        return 2 * dtype.itemsize * largest * self._spec.num_kv_heads * self._spec.head_dim

    @staticmethod
    def _padded_tokens(num_tokens: int, codec: str) -> int:
        return pages_for_tokens(num_tokens, codec) * page_tokens(codec)

    def _head_tiles(self, batch: RangeBatch, dtype: torch.dtype) -> list[slice]:
        """All heads at once when the batch's decoded chunks fit in the scratch, otherwise as many as do."""
        widest = max(
            (len(source.reads) * source.padded_tokens for source in batch.sources if isinstance(source, PagedSource)),
            default=1,
        )
        head_bytes = 2 * dtype.itemsize * widest * self._spec.head_dim
        num_heads = self._spec.num_kv_heads
        num_tiles = -(-num_heads // max(1, min(num_heads, self._scratch_bytes // head_bytes)))
        per_tile = -(-num_heads // num_tiles)
        return [slice(first, min(first + per_tile, num_heads)) for first in range(0, num_heads, per_tile)]


@dataclass
class _Tile:
    """Attention of one batch of ranges in some heads of one layer. E ranges, h KV heads, M = group * T query rows."""

    pool: PagePool
    spec: CacheSpec
    buffers: dict[str, Tensor]
    has_rope: bool
    layer: int
    heads: slice

    def attend(self, q_EhMD: Tensor, batch: RangeBatch, k_ThD: Tensor, v_ThD: Tensor) -> Tensor:
        """Output [E, h, M, D], float32: all sources merged."""
        q_square: Tensor | None = None
        total: Partial | None = None
        for source in batch.sources:
            covers_all = len(source.rows) == len(q_EhMD)
            rows = slice(None) if covers_all else source.rows
            if isinstance(source, CurrentSource):
                k, v = k_ThD[source.tokens].transpose(1, 2), v_ThD[source.tokens].transpose(1, 2)
                partial = flash_partial(q_EhMD[rows], k, v, self.spec.scale)
            else:
                k, v, step_square = self._load(source, q_EhMD.dtype)
                partial = flash_partial(q_EhMD[rows], k, v, self.spec.scale)
                if step_square is not None and self.spec.correction != "off":
                    if q_square is None:
                        q_square = pair_mean_square(q_EhMD) if self.has_rope else q_EhMD.float().square()
                    partial.lse -= self._alpha(source) * bias(q_square[rows], step_square, self.spec.scale)
            if total is None:
                total = partial
            elif covers_all:
                total = merge(total, partial)
            else:
                merged = merge(Partial(total.out[rows], total.lse[rows]), partial)
                total.out[rows], total.lse[rows] = merged.out, merged.lse
        assert total is not None  # every range sees at least its own current keys
        return total.out

    def _load(self, source: PagedSource, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decoded and rotated keys, decoded values [E, h, n, D], and the mean squared steps [E, h, D]."""
        codec, num_ranges = get_codec(source.codec), len(source.reads)
        pages = torch.stack(
            [
                torch.from_numpy(read.chunk.layer_pages(self.layer, self.spec.num_kv_heads)[self.heads])
                for read in source.reads
            ]
        ).to(self.pool.device)
        num_heads, pages_per_head = pages.shape[1:]
        shape = (num_ranges * num_heads, source.padded_tokens, self.spec.head_dim)

        def decode(store: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
            records = store.index_select(0, pages.flatten()).unflatten(0, (-1, pages_per_head))
            tokens = codec.decode(records, source.num_tokens, buffer)
            return tokens.unflatten(0, (num_ranges, num_heads)), records

        # Two buffers: keys are decoded into the first and rotated into the second; then values may use the first.
        first, second = self._buffer("first", shape, dtype), self._buffer("second", shape, dtype)
        keys, key_records = decode(self.pool.keys, first)
        if source.cos is not None and source.sin is not None:
            rotated = second[:, : source.num_tokens].unflatten(0, (num_ranges, num_heads))
            keys, second = rotate(keys, source.cos, source.sin, out=rotated), first
        values, _ = decode(self.pool.values, second)
        step_square = codec.mean_square_steps(key_records, source.num_tokens)
        return keys, values, None if step_square is None else step_square.unflatten(0, (num_ranges, num_heads))

    def _alpha(self, source: PagedSource) -> Tensor | float:
        """Correction factors [E, h, 1]."""
        if self.spec.correction == "formula":
            return 1.0
        factors = [read.chunk.alpha[self.layer, self.heads] for read in source.reads if read.chunk.alpha is not None]
        return torch.stack(factors).unsqueeze(-1)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A reused tensor; grows to the largest size asked for."""
        num_elements = torch.Size(shape).numel()
        buffer = self.buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < num_elements:
            buffer = self.buffers[name] = torch.empty(num_elements, dtype=dtype, device=self.pool.device)
        return buffer[:num_elements].view(shape)


def flash_partial(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Partial:
    """Attention of q [E, h, M, D] over k and v [E, h, n, D] by PyTorch's flash kernel, with its log-sum-exp."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    return Partial(out.float(), lse)


def _head_major(q_EThGD: Tensor) -> Tensor:
    """[E, T, h, G, D] -> [E, h, G * T, D]: query heads of one KV head become more rows, as there is no mask."""
    return q_EThGD.permute(0, 2, 3, 1, 4).flatten(2, 3)
