"""Attention of one batch of ranges in some heads of one layer, source by source: decode, attend, correct, merge.

`RotaryTile` is for keys that turn by their positions (or have none); attention/projective_tile.py for keys and values
read through a projection.

Axes: E ranges, T tokens, h KV heads, G query heads per KV head, M = G * T query rows, n keys, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.flash_cpu import flash_partial
from pagedvid.attention.groups import ContextSource, CurrentSource, PagedSource, RangeBatch, Source
from pagedvid.attention.partial import Partial, merge_into
from pagedvid.attention.rotation import Rotation
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.geometry import is_quantized
from pagedvid.quant.codec import get_codec
from pagedvid.quant.correction import bias
from pagedvid.quant.rotary import pair_mean_square, rotate

Context = Sequence[tuple[Tensor, Tensor] | None]
"""For each range of a step its context keys and values, [n, Hkv, D] each, or None; empty when no range has any."""


@dataclass
class Tile:
    """What both kinds share: pages to tensors, and partials to outputs."""

    pool: PagePool
    spec: CacheSpec
    buffers: dict[str, Tensor]
    layer: int
    heads: slice
    context: Context

    def decode(self, store: Tensor, source: PagedSource, buffer: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(tokens [E, h, n, D] in the named buffer, their records [E * h, pages, bytes])."""
        codec, num_ranges = get_codec(source.codec), len(source.reads)
        pages = torch.stack(
            [
                torch.from_numpy(read.chunk.layer_pages(self.layer, self.spec.num_kv_heads)[self.heads])
                for read in source.reads
            ]
        ).to(self.pool.device)
        num_heads, pages_per_head = pages.shape[1:]
        shape = (num_ranges * num_heads, source.padded_tokens, self.spec.head_dim)
        records = store.index_select(0, pages.flatten()).unflatten(0, (-1, pages_per_head))
        tokens = codec.decode(records, source.num_tokens, self.buffer(buffer, shape, dtype))
        return tokens.unflatten(0, (num_ranges, num_heads)), records

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A reused tensor; grows to the largest size asked for."""
        num_elements = torch.Size(shape).numel()
        buffer = self.buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < num_elements:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = self.buffers[name] = torch.empty(num_elements, dtype=dtype, device=self.pool.device)
        return buffer[:num_elements].view(shape)

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.spec.query_heads // self.spec.num_kv_heads

    def alpha(self, source: PagedSource) -> Tensor | float:
        """Correction factors [E, h, 1]."""
        if self.spec.correction == "formula":
            return 1.0
        factors = [read.chunk.alpha[self.layer, self.heads] for read in source.reads if read.chunk.alpha is not None]
        return torch.stack(factors).unsqueeze(-1)

    def is_corrected(self, batch: RangeBatch) -> bool:
        """Whether any source of the batch has keys that are corrected."""
        has_steps = any(isinstance(source, PagedSource) and is_quantized(source.codec) for source in batch.sources)
        return self.spec.correction != "off" and has_steps

    def context_of(self, source: ContextSource) -> tuple[Tensor, Tensor]:
        """Context keys and values as they were given, [E, n, h, D]."""
        pairs = [pair for number in source.numbers if (pair := self.context[number]) is not None]
        return torch.stack([k[:, self.heads] for k, _ in pairs]), torch.stack([v[:, self.heads] for _, v in pairs])

    @staticmethod
    def add(total: Partial, source: Source, partial: Partial) -> None:
        """Merges a partial into the rows of `total` that it belongs to."""
        if len(source.rows) == len(total.out):
            merge_into(total, partial)
            return
        part = Partial(total.out[source.rows], total.lse[source.rows])
        merge_into(part, partial)
        total.out[source.rows], total.lse[source.rows] = part.out, part.lse

    @staticmethod
    def write(total: Partial, batch: RangeBatch, out_ThGD: Tensor) -> None:
        """Puts the batch's tokens in their places of the packed output."""
        out_ETHGD = total.out.unflatten(2, (out_ThGD.shape[2], -1)).permute(0, 3, 1, 2, 4)
        out_ThGD.index_copy_(0, batch.tokens.flatten(), out_ETHGD.flatten(0, 1).to(out_ThGD.dtype))


@dataclass
class RotaryTile(Tile):
    """Keys turn by their positions, values are read as they are."""

    rotation: Rotation

    def attend(self, q_ThD: Tensor, batch: RangeBatch, k_ThD: Tensor, v_ThD: Tensor, out_ThGD: Tensor) -> None:
        """Writes the batch's tokens of `out_ThGD`: all sources merged. `q_ThD` has h * G heads."""
        q_EhMD = head_major(self.rotation.rotated(q_ThD, batch.tokens), self.group)
        own, *others = batch.sources
        total = self._partial(own, q_EhMD, None, k_ThD, v_ThD)
        q_square = self._q_square(q_EhMD, batch)
        for source in others:
            self.add(total, source, self._partial(source, q_EhMD, q_square, k_ThD, v_ThD))
        self.write(total, batch, out_ThGD)

    def _partial(
        self, source: Source, q_EhMD: Tensor, q_square: Tensor | None, k_ThD: Tensor, v_ThD: Tensor
    ) -> Partial:
        """Attention of the source's ranges over its keys, corrected."""
        rows = slice(None) if len(source.rows) == len(q_EhMD) else source.rows
        if isinstance(source, CurrentSource):
            k, v = self.rotation.rotated(k_ThD, source.tokens), v_ThD[source.tokens]
            return flash_partial(q_EhMD[rows], k.transpose(1, 2), v.transpose(1, 2), self.spec.scale)
        if isinstance(source, ContextSource):
            k, v = self.context_of(source)
            k = self.rotation.in_page_order(k)
            return flash_partial(q_EhMD[rows], k.transpose(1, 2), v.transpose(1, 2), self.spec.scale)
        k, v, step_square = self._load(source, q_EhMD.dtype)
        partial = flash_partial(q_EhMD[rows], k, v, self.spec.scale)
        if step_square is not None and q_square is not None:
            partial.lse -= self.alpha(source) * bias(q_square[rows], step_square, self.spec.scale)
        return partial

    def _q_square(self, q_EhMD: Tensor, batch: RangeBatch) -> Tensor | None:
        """What the correction needs of the queries; None when nothing is corrected."""
        if not self.is_corrected(batch):
            return None
        return q_EhMD.float().square() if self.rotation.rope is None else pair_mean_square(q_EhMD)

    def _load(self, source: PagedSource, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decoded and rotated keys, decoded values [E, h, n, D], and the mean squared steps [E, h, D]."""
        # Two buffers: keys are decoded into the first and rotated into the second; then values may use the first.
        free = "second"
        keys, key_records = self.decode(self.pool.keys, source, "first", dtype)
        if source.cos is not None and source.sin is not None:
            shape = (keys.shape[0] * keys.shape[1], source.padded_tokens, keys.shape[3])
            rotated = self.buffer("second", shape, dtype)[:, : source.num_tokens].unflatten(0, keys.shape[:2])
            keys, free = rotate(keys, source.cos, source.sin, out=rotated), "first"
        values, _ = self.decode(self.pool.values, source, free, dtype)
        step_square = get_codec(source.codec).mean_square_steps(key_records, source.num_tokens)
        return keys, values, None if step_square is None else step_square.unflatten(0, keys.shape[:2])


def head_major(q_ETHD: Tensor, group: int) -> Tensor:
    """[E, T, h * G, D] -> [E, h, G * T, D]: query heads of one KV head become more rows, as there is no mask."""
    return q_ETHD.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
