"""PagedKVCache: what an engine embeds. Bookkeeping (cache/) and attention (attention/) in one object.

cache  = PagedKVCache(CacheSpec(num_layers=30, num_kv_heads=12, head_dim=128), memory="24GiB")
stream = cache.open(Window(sink_chunks=1, recent_chunks=6), chunk_tokens=4680)
with cache.denoise([stream]) as step:       # reads only; once for each denoise step
    ...  out = step.attend(layer, q, k, v, rope)
with cache.commit([stream]) as step:        # reads and stores; published when the block ends without error
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.arguments import instance_of, list_of, one_of, whole_numbers
from pagedvid.attention.backend import select_backend
from pagedvid.attention.scratch import scratch_bytes
from pagedvid.attention.step import Step, checked_layer
from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange, StepPlan, chunk_positions
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import ChunkImage, StreamImage
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.tables_file import load_calibration
from pagedvid.correction.formula import QuantError
from pagedvid.devices import read_device
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.host_state import current_device, independent_of_host
from pagedvid.rotary.tables import from_half_layout, rotated_at

if TYPE_CHECKING:  # some builds of PyTorch have no torch.distributed
    from pagedvid.distributed.sharding import Shard, Sharding

HISTORY_DTYPES = ("auto", "bf16", "fp8")


class StoredLayer(NamedTuple):
    """One layer of a committed chunk. Axes: n tokens, H KV heads, D head_dim."""

    k: Tensor
    """float32 [n, H, D], in the host's channel order."""
    v: Tensor
    quant_errors: tuple[tuple[Heads, QuantError], ...]
    """For each group of heads whose keys share a codec, counted from the first head that was read: what is known of how
    storing changed the keys. Its `bias` is what the correction subtracts from the log-sum-exp (correction/formula.py).
    Nothing is subtracted in heads that are in no group."""


class PagedKVCache(CacheManager):
    """A `CacheManager` whose steps can attend."""

    @independent_of_host
    def __init__(
        self,
        spec: CacheSpec,
        memory: int | str,
        device: torch.device | str = "cpu",
        *,
        backend: str = "auto",
        scratch: int | str = "auto",
        history_dtype: str = "auto",
        tables: Path | str | None = None,
        book: CodecBook | None = None,
        shard: Shard | None = None,
    ) -> None:
        """`memory`: bytes of all pages, or text such as "24GiB". `scratch`: bytes for decoded keys and values; one head
        of one chunk always fits; "auto" is 4 MiB on a CPU and 512 MiB on a GPU. `history_dtype`: what pages are
        decoded to, besides the current chunk: "bf16", the model's own dtype; "fp8", e4m3 for all quantized history;
        "auto", e4m3 where that is faster and costs no quality (docs/fidelity.md). `tables`: the file that klt codecs
        need (docs/calibrate.md). `book`: codec objects of your own, instead of `tables`. `shard`: the ranks that share
        the KV heads of `spec` evenly; this cache holds those of its own rank (its `book`, too), in `memory` of its own,
        and every rank makes the same calls in the same order (docs/many_devices.md).

        Raises CapacityError, BackendError, ConfigError.
        """
        if tables is not None and book is not None:
            raise ConfigError("both tables and book are given; a book has its tables already, so leave `tables` out")
        instance_of(CacheSpec, "spec", spec, "CacheSpec(num_layers, num_kv_heads, head_dim)", ConfigError)
        self.whole_spec = spec
        """Of all heads of the model; `spec` is that of the heads in this cache."""
        self.sharding = None if shard is None else _sharding(spec, shard, device)
        """None: this cache has all heads."""
        calibration = None if tables is None else load_calibration(tables)
        if self.sharding is not None:
            spec, calibration = self.sharding.own, self.sharding.own_tables(calibration)
        super().__init__(spec, memory, device)
        self.book = CodecBook(self.shape.page, spec.num_kv_heads, calibration) if book is None else book
        instance_of(CodecBook, "book", self.book, "CodecBook(spec.shape.page, spec.num_kv_heads, tables)", ConfigError)
        self.check_codecs(spec.codecs)
        with current_device(self.pool.device):
            num_bytes = scratch_bytes(scratch, self.pool.device)
            dtype = one_of(HISTORY_DTYPES, "history_dtype", history_dtype, ConfigError)
            self.backend = select_backend(backend, self.pool, spec, self.book, num_bytes, dtype)

    def check_codecs(self, codecs: StreamCodecs) -> None:
        """Raises ConfigError for codecs in which this cache cannot store chunks, or whose tables are missing."""
        super().check_codecs(codecs)
        self.book.check(codecs.all(), self.spec.num_layers)

    # ------------------------------------------------------------------ ranks that share the heads

    @property
    def num_ranks(self) -> int:
        """How many share the heads of the model; 1: this cache holds all of them."""
        return 1 if self.sharding is None else self.sharding.exchange.num_ranks

    @override
    def own_codecs(self, codecs: StreamCodecs) -> StreamCodecs:
        return codecs if self.sharding is None else self.sharding.own_codecs(codecs)

    @property
    @override
    def on_every_rank(self) -> Callable[[bool], bool]:
        return bool if self.sharding is None else self.sharding.agree

    @independent_of_host
    def whole_image(self, image: StreamImage) -> StreamImage:
        """The image with the heads of all ranks, which must all make this call; `image` itself without a shard.

        `copy_in` takes it with any number of ranks.
        """
        return image if self.sharding is None else self.sharding.whole_image(image)

    # ------------------------------------------------------------------ images

    @override
    def image_pages(self, image: StreamImage) -> int:
        return super().image_pages(self._own_part(image))

    @independent_of_host
    @override
    def copy_in(self, image: StreamImage) -> Stream:
        """As `CacheManager.copy_in`; the ropes of the image may be the model's own `RopeTables`.

        Raises ConfigError also for an image from a file that was not given its model's (`StreamImage.with_model`).
        """
        image = self._own_part(image)
        layers = range(image.shape.num_layers)
        return super().copy_in(image.with_chunks(lambda _, chunk: self._with_checked_ropes(chunk, layers)))

    def _own_part(self, image: StreamImage) -> StreamImage:
        instance_of(StreamImage, "image", image, "what `copy_out` returned", ConfigError)
        return image if self.sharding is None else self.sharding.part_of(image)

    def _with_checked_ropes(self, chunk: ChunkImage, layers: Iterable[int]) -> ChunkImage:
        missing = [layer for layer in layers if layer not in chunk.ropes]
        if missing:
            raise ConfigError(
                f"chunk {chunk.index} of the image has no rotary tables for layers {missing}, since files hold none; "
                "give the image those of its model with `image.with_model(rope, tag)`"
            )
        checked = self.backend.store.ropes.checked
        ropes = {layer: None if rope is None else checked(rope) for layer, rope in chunk.ropes.items()}
        return replace(chunk, ropes=ropes)

    # ------------------------------------------------------------------ steps

    @contextmanager
    def step(self, ranges: Sequence[Stream | QueryRange]) -> Iterator[Step]:
        """A forward over any mix of denoise steps and commit passes; a bare stream is a denoise step.

        When the block ends without an error, all new chunks are published together; after an exception no stream has
        changed. Raises StateError and ShapeError for ranges that cannot be planned.
        """
        with self.transaction(as_ranges(ranges)) as plan, self._opened(plan) as step:
            yield step

    @contextmanager
    def _opened(self, plan: StepPlan) -> Iterator[Step]:
        if self.sharding is not None:
            with self.sharding.opened(plan, self.pool, self.backend) as sharded:
                yield sharded
            return
        step = self._new_step(plan)
        try:
            yield step
        finally:
            step.end()

    def _new_step(self, plan: StepPlan) -> Step:
        return Step(plan, self.pool, self.spec, self.backend)

    def denoise(self, ranges: Sequence[Stream | QueryRange]) -> AbstractContextManager[Step]:
        """A forward that only reads. A bare stream means its branch "cond" with chunk_tokens tokens."""
        return self.step([replace(range_, commit=False) for range_ in as_ranges(ranges)])

    def commit(self, ranges: Sequence[Stream | QueryRange]) -> AbstractContextManager[Step]:
        """A commit pass of every range: stores one chunk each, all published together or none."""
        return self.step([replace(range_, commit=True) for range_ in as_ranges(ranges)])

    def replace(self, stream: Stream, chunk_index: int, branch: str = "cond") -> AbstractContextManager[Step]:
        """A commit pass that replaces the keys and values of a live chunk (prompt switch, refreshed sink).

        The old ones stay readable until the block ends, which can take pages beyond the stream's peak. Raises
        CapacityError, StateError.
        """
        (old,) = stream.history(branch).select(whole_numbers("chunk_index", (chunk_index,)))
        return self.step([QueryRange(stream, branch, old.num_tokens, commit=True, replaces=chunk_index)])

    @independent_of_host
    def read(
        self,
        stream: Stream,
        chunk_index: int,
        layer: int,
        branch: str = "cond",
        *,
        rotated: bool | None = None,
        heads: tuple[int, int] | None = None,
    ) -> StoredLayer:
        """One layer of a committed chunk as dense tensors, for a host that attends by itself.

        `rotated`: whether keys come back rotated to their present positions, or before rotary embedding; None: as the
        host's own keys arrive (`CacheSpec.keys_arrive`). `heads`: (first, last) KV head of this cache; None:
        all. Raises StateError for a chunk that the branch does not keep, or if one of these heads keeps nothing of it;
        ShapeError for a layer or heads that do not exist.
        """
        self._require_open(stream)
        layer, history, store = checked_layer(layer, self.spec.num_layers), stream.history(branch), self.backend.store
        (chunk,) = history.select(whole_numbers("chunk_index", (chunk_index,)))
        given = chunk.ropes[layer]
        rope = None if given is None else store.ropes.on_device(given.host)
        wanted = self._checked_heads(heads)
        with current_device(self.pool.device):
            k_HnD, v_HnD = store.read(chunk, layer, rope, wanted)
            errors = store.correction.quant_errors(chunk, layer, wanted, has_rope=rope is not None)
        if rotated is None:
            rotated = self.spec.keys_arrive == "rotated"
        if rotated:
            k_HnD = rotated_at(k_HnD, rope, chunk_positions(history)[chunk.index])
        if rope is not None:
            k_HnD = from_half_layout(k_HnD, rope.layout)
        counted = ((tuple(head - wanted[0] for head in group), error) for group, error in errors)
        return StoredLayer(k_HnD.transpose(0, 1), v_HnD.transpose(0, 1), tuple(counted))

    def _checked_heads(self, heads: tuple[int, int] | None) -> Heads:
        num_heads = self.spec.num_kv_heads
        if heads is None:
            return tuple(range(num_heads))
        ends = whole_numbers("heads", heads)
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] < num_heads:
            raise ShapeError(f"heads are {heads}; give the first and the last, from 0 to {num_heads - 1}")
        return tuple(range(ends[0], ends[1] + 1))


def _sharding(spec: CacheSpec, shard: Shard, device: torch.device | str) -> Sharding:
    from pagedvid.distributed.sharding import Sharding

    return Sharding.of(spec, shard, read_device(device))


def as_ranges(items: Sequence[Stream | QueryRange]) -> list[QueryRange]:
    """Streams as query ranges of their next chunks; query ranges unchanged. Raises StateError for anything else."""
    kinds: Any = (Stream, QueryRange)
    listed: list[Stream | QueryRange] = list_of(kinds, "ranges", items, "[stream]", StateError)
    return [QueryRange(item) if isinstance(item, Stream) else item for item in listed]
