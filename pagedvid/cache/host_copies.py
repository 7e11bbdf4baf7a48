"""Copies of page bytes between a pool and ordinary host memory.

On a GPU they run on a CUDA stream of their own, through one block of pinned memory. Images themselves are not pinned:
they take exactly their own bytes (pinned memory is rounded up to powers of two), and may come from a file.

    out    waits for the kernels that write pages, but not for those queued later that only read, such as denoise steps
    in     waits for all kernels queued so far, because they may still read the old contents of these pages

Both return when the copy is complete, so kernels that are queued later need not wait for anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.cache.pool import PageIds, PagePool
from pagedvid.units import MIB

BLOCK_BYTES = 64 * MIB
"""Size of the pinned block, and of the block of GPU memory that a copy needs while it runs."""


class HostCopies:
    """Copies out of and into one pool. Copies of a pool on the device "meta", which has no bytes, have none either."""

    def __init__(self, pool: PagePool) -> None:
        """`pool`: whose pages are copied."""
        self._pool = pool
        self._is_gpu = pool.device.type == "cuda"
        self._written: torch.cuda.Event | None = None

    def note_writes(self) -> None:
        """To be called when kernels that write pages have been queued; copies out wait for them."""
        if self._is_gpu:
            self._written = self._now()

    def pages_out(self, ids: PageIds) -> Tensor:
        """Copies of the pages with these ids on the host, uint8 [P, page_bytes]."""
        if not self._is_gpu:
            return self._pool.read(ids)
        records_PB = torch.empty(len(ids), self._pool.page_bytes, dtype=torch.uint8, device="cpu")
        for part in self._parts(len(ids)):
            block = self._block[: part.stop - part.start]
            with self._beside(self._written):
                block.copy_(self._pool.read(ids[part]), non_blocking=True)
            records_PB[part] = block
        return records_PB

    def pages_in(self, ids: PageIds, records_PB: Tensor) -> None:
        """Writes records from the host, uint8 [P, page_bytes], to the pages with these ids."""
        if not self._is_gpu:
            self._pool.write(ids, records_PB)
            return
        readers = self._now()
        for part in self._parts(len(ids)):
            block = self._block[: part.stop - part.start]
            block.copy_(records_PB[part])
            with self._beside(readers):
                self._pool.write(ids[part], block.to(self._pool.device, non_blocking=True))

    def out(self, x: Tensor | None) -> Tensor | None:
        """A small tensor of a committed chunk, such as its alpha, copied to the host as it is; None stays None."""
        if x is None or not self._is_gpu:
            return x
        with self._beside(self._written):
            return x.cpu()

    @contextmanager
    def _beside(self, earlier: torch.cuda.Event | None) -> Iterator[None]:
        """Runs the block on the CUDA stream of the copies once `earlier` has happened, and waits until it is done."""
        if earlier is not None:
            self._stream.wait_event(earlier)
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def _now(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self._pool.device).record_event()

    def _parts(self, num_pages: int) -> Iterator[slice]:
        step = len(self._block)
        return (slice(first, min(first + step, num_pages)) for first in range(0, num_pages, step))

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._pool.device)

    @cached_property
    def _block(self) -> Tensor:
        num_pages = max(1, BLOCK_BYTES // self._pool.page_bytes)
        return torch.empty(num_pages, self._pool.page_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
