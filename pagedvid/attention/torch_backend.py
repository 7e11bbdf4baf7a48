"""The backend for any CPU. It never holds a dense window: chunk by chunk, and where chunks are large a few heads at a
time, pages are decoded into a small reused scratch, rotated, attended, corrected and merged.

PyTorch's own flash kernel for the CPU is called directly, because it returns the log-sum-exp.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.groups import CurrentSource, PagedSource, RangeBatch, group_ranges
from pagedvid.attention.partial import Partial, merge_into
from pagedvid.attention.rotation import Rotation
from pagedvid.cache.plan import RangePlan, StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.geometry import is_quantized, page_tokens, pages_for_tokens
from pagedvid.quant.codec import get_codec
from pagedvid.quant.correction import bias
from pagedvid.quant.rotary import pair_mean_square, rotate

LARGE_BLOCKS_FROM_ROWS = 768
"""The CPU kernel works on blocks of 256 rows from this many rows on, on smaller blocks below."""


def unsupported_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
    """Why this backend cannot run here; empty when it can."""
    reasons = []
    if device.type != "cpu":
        reasons.append(f"it runs on the device cpu, not on {device.type}")
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        reasons.append(f"torch {torch.__version__} lacks the flash kernel for the CPU; 2.6 or newer has it")
    return reasons


@dataclass
class _Prepared:
    batches: list[RangeBatch]
    rotation: Rotation


class TorchBackend:
    """See the module docstring.

    `scratch_bytes` bounds the decoded keys and values, though one head of one chunk always fits. Queries, partials and
    temporaries of the arithmetic come on top, about four times as much, and a step's rotary tables.
    """

    name = "torch"

    def __init__(self, pool: PagePool, spec: CacheSpec, scratch_bytes: int) -> None:
        self._pool = pool
        self._spec = spec
        self._scratch_bytes = scratch_bytes
        self._buffers: dict[str, Tensor] = {}

    def prepare(self, plan: StepPlan, rotation: Rotation, dtype: torch.dtype) -> _Prepared:
        """See `AttentionBackend.prepare`."""
        batches = group_ranges(
            plan, rotation.rope, dtype, lambda range_: self._scratch_bytes // self._range_bytes(range_, dtype)
        )
        return _Prepared(batches, rotation)

    def attend(self, prepared: _Prepared, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        """See `AttentionBackend.attend`."""
        num_heads, group = self._spec.num_kv_heads, self._spec.query_heads // self._spec.num_kv_heads
        out_THGD = torch.empty_like(q_THD).unflatten(1, (num_heads, group))
        for batch in prepared.batches:
            for heads in self._head_tiles(batch, q_THD.dtype):
                tile = _Tile(self._pool, self._spec, self._buffers, prepared.rotation, layer, heads)
                q_ThD = q_THD[:, heads.start * group : heads.stop * group]
                tile.attend(q_ThD, batch, k_THD[:, heads], v_THD[:, heads], out_THGD[:, heads])
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
        """All heads at once when the batch's decoded or current chunks fit in the scratch, otherwise as many as do."""
        paged = [source for source in batch.sources if isinstance(source, PagedSource)]
        widest = max([batch.tokens.numel(), *(len(source.reads) * source.padded_tokens for source in paged)])
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
    rotation: Rotation
    layer: int
    heads: slice

    def attend(self, q_ThD: Tensor, batch: RangeBatch, k_ThD: Tensor, v_ThD: Tensor, out_ThGD: Tensor) -> None:
        """Writes the batch's tokens of `out_ThGD`: all sources merged. `q_ThD` has h * G heads."""
        group = out_ThGD.shape[2]
        q_EhMD = _head_major(self.rotation.rotated(q_ThD, batch.tokens), group)
        own, *others = batch.sources
        total = self._partial(own, q_EhMD, None, k_ThD, v_ThD)
        q_square = self._q_square(q_EhMD, batch)
        for source in others:
            self._add(total, source, self._partial(source, q_EhMD, q_square, k_ThD, v_ThD))
        out_ETHGD = total.out.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4)
        out_ThGD.index_copy_(0, batch.tokens.flatten(), out_ETHGD.flatten(0, 1).to(out_ThGD.dtype))

    def _partial(
        self, source: CurrentSource | PagedSource, q_EhMD: Tensor, q_square: Tensor | None, k_ThD: Tensor, v_ThD: Tensor
    ) -> Partial:
        """Attention of the source's ranges over its keys, corrected."""
        rows = slice(None) if len(source.rows) == len(q_EhMD) else source.rows
        if isinstance(source, CurrentSource):
            k, v = self.rotation.rotated(k_ThD, source.tokens), v_ThD[source.tokens]
            return flash_partial(q_EhMD[rows], k.transpose(1, 2), v.transpose(1, 2), self.spec.scale)
        k, v, step_square = self._load(source, q_EhMD.dtype)
        partial = flash_partial(q_EhMD[rows], k, v, self.spec.scale)
        if step_square is not None and q_square is not None:
            partial.lse -= self._alpha(source) * bias(q_square[rows], step_square, self.spec.scale)
        return partial

    @staticmethod
    def _add(total: Partial, source: CurrentSource | PagedSource, partial: Partial) -> None:
        """Merges a partial into the rows of `total` that it belongs to."""
        if len(source.rows) == len(total.out):
            merge_into(total, partial)
            return
        part = Partial(total.out[source.rows], total.lse[source.rows])
        merge_into(part, partial)
        total.out[source.rows], total.lse[source.rows] = part.out, part.lse

    def _q_square(self, q_EhMD: Tensor, batch: RangeBatch) -> Tensor | None:
        """What the correction needs of the queries; None when nothing is corrected."""
        has_steps = any(isinstance(source, PagedSource) and is_quantized(source.codec) for source in batch.sources)
        if self.spec.correction == "off" or not has_steps:
            return None
        return q_EhMD.float().square() if self.rotation.rope is None else pair_mean_square(q_EhMD)

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
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = self.buffers[name] = torch.empty(num_elements, dtype=dtype, device=self.pool.device)
        return buffer[:num_elements].view(shape)


def flash_partial(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Partial:
    """Attention of q [E, h, M, D] over k and v [E, h, n, D] by PyTorch's flash kernel, with its log-sum-exp."""
    parts = _row_parts(q, torch.get_num_threads())
    if parts > 1:
        q = q[0].unflatten(1, (parts, -1))
        k, v = (x[0].unsqueeze(1).expand(-1, parts, -1, -1) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    if parts > 1:
        out, lse = out.flatten(1, 2).unsqueeze(0), lse.flatten(1, 2).unsqueeze(0)
    return Partial(out.float(), lse)


def _row_parts(q: Tensor, num_threads: int) -> int:
    """Into how many parts the rows of q [E, h, M, D] are cut, so that the kernel gives all threads the same work.

    It deals out blocks of 256 rows: of one head with 4680 rows, one of two threads would get 2560. Short parts would
    get smaller, slower blocks.
    """
    num_ranges, num_heads, num_rows, _ = q.shape
    is_even = num_ranges * num_heads % num_threads == 0
    can_be_cut = num_ranges == 1 and num_rows % num_threads == 0 and num_rows // num_threads >= LARGE_BLOCKS_FROM_ROWS
    return num_threads if can_be_cut and not is_even else 1


def _head_major(q_ETHD: Tensor, group: int) -> Tensor:
    """[E, T, h * G, D] -> [E, h, G * T, D]: query heads of one KV head become more rows, as there is no mask."""
    return q_ETHD.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
