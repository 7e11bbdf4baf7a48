"""One rank of a sharded cache: which heads it holds, and what it agrees on with the other ranks.

Every rank makes the same calls in the same order. Ranks never send each other pages. Where all heads are stored alike,
page tables are the same on all ranks; otherwise they differ in length, and room counts only if all ranks have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from pagedvid.arguments import instance_of
from pagedvid.attention.backend import AttentionBackend
from pagedvid.attention.step import Step
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import ChunkImage, StreamImage
from pagedvid.codecs.tables_file import Calibration
from pagedvid.distributed.exchange import Exchange
from pagedvid.distributed.heads import HeadShard
from pagedvid.distributed.images import join_images, part_of_image
from pagedvid.distributed.step import ShardedStep
from pagedvid.errors import ConfigError, NonFiniteError
from pagedvid.host_state import current_device

Shard = DeviceMesh | dist.ProcessGroup
"""The ranks that share a model's heads."""


@dataclass(frozen=True)
class Sharding:
    """A cache with the heads of one rank."""

    whole: CacheSpec
    """Of all heads."""
    heads: HeadShard
    exchange: Exchange
    device: torch.device

    @staticmethod
    def of(spec: CacheSpec, shard: Shard, device: torch.device) -> Sharding:
        """Raises ConfigError for a mesh of several axes, and for ranks that cannot share the heads evenly."""
        exchange = Exchange(_group_of(shard))
        heads = HeadShard.of_rank(exchange.rank, exchange.num_ranks, spec.num_kv_heads)
        return Sharding(spec, heads, exchange, device)

    @cached_property
    def own(self) -> CacheSpec:
        """Of the rank's heads."""
        return self.heads.of_spec(self.whole)

    def own_codecs(self, codecs: StreamCodecs) -> StreamCodecs:
        """How the rank's heads are stored. Raises ConfigError for codecs that do not fit all heads."""
        self.whole.check_codecs(codecs)
        return self.heads.of_codecs(codecs)

    def own_tables(self, tables: Calibration | None) -> Calibration | None:
        """Those of the rank's heads; tables of another number of heads as they are, for the cache to refuse."""
        is_of_model = tables is not None and tables.num_kv_heads == self.whole.num_kv_heads
        return self.heads.of_calibration(tables) if tables is not None and is_of_model else tables

    @contextmanager
    def opened(self, plan: StepPlan, pool: PagePool, backend: AttentionBackend) -> Iterator[Step]:
        """A step over the rank's heads. Raises NonFiniteError at its end when the keys or values of any rank could not
        be stored, on all ranks."""
        step = ShardedStep(plan, pool, self.own, backend, self.whole, self.heads, self.exchange)
        try:
            yield step
            if plan.pending:
                self._require_stored(step)
        finally:
            step.end()

    def agree(self, is_so: bool) -> bool:
        """Whether `is_so` is true on every rank; all ranks must make this call."""
        answer = torch.tensor([is_so], dtype=torch.int32, device=self.device)
        with current_device(self.device):
            dist.all_reduce(answer, dist.ReduceOp.MIN, group=self.exchange.group)
        return bool(answer.item())

    def part_of(self, image: StreamImage) -> StreamImage:
        """The rank's part of a whole image; one that has been cut already, as it is."""
        is_whole = image.shape.num_kv_heads == self.whole.num_kv_heads
        return part_of_image(image, self.heads) if is_whole else image

    def whole_image(self, own: StreamImage) -> StreamImage:
        """The image with the parts of all ranks, which must all make this call."""
        parts: list[StreamImage] = [own] * self.exchange.num_ranks
        with current_device(self.device):
            dist.all_gather_object(parts, own.without_objects(), self.exchange.group)
        own_chunks = {(name, chunk.index): chunk for name, branch in own.branches.items() for chunk in branch.chunks}

        def with_objects(branch: str, chunk: ChunkImage) -> ChunkImage:
            mine = own_chunks[branch, chunk.index]
            return replace(chunk, ropes=mine.ropes, tag=mine.tag)

        return join_images(parts).with_chunks(with_objects)

    def _require_stored(self, step: ShardedStep) -> None:
        """Raises NonFiniteError on all ranks if keys or values of any rank could not be stored."""
        if self.agree(step.failure is None):
            return
        mine, messages = "", [""] * self.exchange.num_ranks
        if step.failure is not None:
            mine = f"rank {self.exchange.rank}, whose KV head 0 is the model's {self.heads.first}: {step.failure}"
        with current_device(self.device):
            dist.all_gather_object(messages, mine, self.exchange.group)
        raise NonFiniteError("; ".join(message for message in messages if message)) from step.failure


def _group_of(shard: Shard) -> dist.ProcessGroup:
    if isinstance(shard, dist.ProcessGroup):
        return shard
    mesh = instance_of(DeviceMesh, "shard", shard, "a DeviceMesh of one axis or a ProcessGroup", ConfigError)
    if mesh.ndim != 1:
        raise ConfigError(
            f"shard is a mesh of {mesh.ndim} axes; give the one that shares the heads, such as "
            f"mesh[{(mesh.mesh_dim_names or ('heads',))[-1]!r}]"
        )
    return mesh.get_group()
