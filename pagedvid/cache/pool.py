"""Page storage: one byte tensor, the ids of free pages, and the table of the pages of one chunk.

    returned   [7 3 9] [4 0]              take(n): from the array returned last, and so on, then new ids
    new        from num_begun on          give_back(ids): one more array

Ids come and go in whole arrays, and a page that was never taken costs nothing but its bytes. The pool knows nothing of
chunks, streams or reservations.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagedvid.codecs.assignment import Heads, are_neighbours
from pagedvid.errors import CapacityError, IntegrityError

PageIds = NDArray[np.int32]


class PagePool:
    """`num_pages` pages; page p is `records[p]`, uint8 [page_bytes], and holds keys or values.

    The device "meta" gives a pool without bytes, for simulating the bookkeeping alone.
    """

    def __init__(self, num_pages: int, page_bytes: int, device: torch.device | str = "cpu") -> None:
        """`page_bytes`: of one page. Raises CapacityError for a pool without a page or that cannot be allocated."""
        if num_pages < 1:
            raise CapacityError(f"the memory holds no page; one needs {page_bytes} bytes. Give the pool more memory.")
        self.num_pages = num_pages
        self.page_bytes = page_bytes
        try:
            self.records = torch.empty(num_pages, page_bytes, dtype=torch.uint8, device=device)
        except (RuntimeError, TypeError) as error:  # the latter for sizes beyond 64 bits
            raise CapacityError(
                f"cannot allocate a pool of {num_pages * page_bytes} bytes on {device}: {error}. "
                "Give the pool less memory."
            ) from error
        self._returned: list[PageIds] = []
        self._num_returned = 0
        self._num_begun = 0
        self.peak_used_pages = 0

    @property
    def device(self) -> torch.device:
        """Device of the bytes."""
        return self.records.device

    @property
    def num_free_pages(self) -> int:
        """Pages that no chunk has taken."""
        return self.num_pages - self.num_used_pages

    @property
    def num_used_pages(self) -> int:
        """Pages that chunks have taken."""
        return self._num_begun - self._num_returned

    @property
    def free_ids(self) -> PageIds:
        """The ids of all free pages, int32 [free pages]; a copy."""
        new = np.arange(self._num_begun, self.num_pages, dtype=np.int32)
        return np.concatenate([*self._returned, new])

    def take(self, num_pages: int) -> PageIds:
        """Takes pages; returns their ids, int32 [num_pages].

        Raises IntegrityError when fewer are free, which admission makes impossible.
        """
        if num_pages > self.num_free_pages:
            raise IntegrityError(
                f"{num_pages} pages wanted, {self.num_free_pages} free, although they had been reserved"
            )
        taken, missing = [], num_pages
        while missing and self._returned:
            ids = self._returned.pop()
            if len(ids) > missing:
                self._returned.append(ids[missing:])
            taken.append(ids[:missing])
            missing -= len(taken[-1])
        self._num_returned -= num_pages - missing
        taken.append(np.arange(self._num_begun, self._num_begun + missing, dtype=np.int32))
        self._num_begun += missing
        self.peak_used_pages = max(self.peak_used_pages, self.num_used_pages)
        return np.concatenate(taken)

    def give_back(self, ids: PageIds) -> None:
        """Makes the pages with these ids, int32 [P], free again. Raises IntegrityError for more than were taken."""
        if len(ids) > self.num_used_pages:
            raise IntegrityError(f"{len(ids)} pages given back to a pool with only {self.num_used_pages} taken")
        if len(ids):
            self._returned.append(ids)
            self._num_returned += len(ids)

    def read(self, ids: PageIds) -> Tensor:
        """Copies of the pages with these ids, in their shape: uint8 [*ids.shape, page_bytes]."""
        index = torch.from_numpy(ids.ravel()).to(self.device)
        return self.records.index_select(0, index).unflatten(0, ids.shape)

    def write(self, ids: PageIds, records: Tensor) -> None:
        """Writes records, uint8 [*ids.shape, page_bytes], to the pages with these ids."""
        index = torch.from_numpy(ids.ravel()).long().to(self.device)
        self.records.index_copy_(0, index, records.flatten(0, -2))


class PageTable:
    """Which pages hold the keys and values of every layer and KV head of a chunk.

    A CSR table over (kind, layer, KV head), keys before values: entry t owns `ids[indptr[t] : indptr[t + 1]]`, in token
    order. Entries are as long as their head's codec wants, and empty for a head that keeps nothing.
    """

    def __init__(self, ids: PageIds, indptr: NDArray[np.int64], num_kv_heads: int) -> None:
        """`ids`: int32 [pages of the chunk]. `indptr`: int64 [2 * layers * KV heads + 1]."""
        self.ids = ids
        self.indptr = indptr
        self._num_kv_heads = num_kv_heads
        self._num_layers = (len(indptr) - 1) // (2 * num_kv_heads)
        self._on_device: Tensor | None = None
        self._gathered: dict[tuple[str, int, Heads], Tensor] = {}

    def layer(self, kind: str, layer: int, heads: Heads) -> PageIds:
        """Page ids of the "keys" or "values" of KV heads that store them alike, int32 [heads, pages of a head]; a view
        if the heads are neighbours."""
        if are_neighbours(heads):
            first, end = self._bounds(kind, layer, heads[0], heads[-1])
            return self.ids[first:end].reshape(len(heads), -1)
        bounds = (self._bounds(kind, layer, head, head) for head in heads)
        return np.stack([self.ids[first:end] for first, end in bounds])

    def layer_on(self, device: torch.device, kind: str, layer: int, heads: Heads) -> Tensor:
        """What `layer` returns, as a tensor on the device, int32 [heads, pages of a head].

        The table is copied to a GPU once, and heads that are no neighbours are gathered there once.
        """
        if device.type == "cpu":
            return torch.from_numpy(self.layer(kind, layer, heads))
        if are_neighbours(heads):
            first, end = self._bounds(kind, layer, heads[0], heads[-1])
            return self.on(device)[first:end].view(len(heads), -1)
        key = (kind, layer, heads)
        if key not in self._gathered:
            bounds = (self._bounds(kind, layer, head, head) for head in heads)
            self._gathered[key] = torch.stack([self.on(device)[first:end] for first, end in bounds])
        return self._gathered[key]

    @property
    def is_filled(self) -> NDArray[np.bool_]:
        """Which entries own pages, bool [entries]."""
        return np.diff(self.indptr) > 0

    def ids_of(self, entries: NDArray[np.bool_]) -> PageIds:
        """Page ids of the entries that are True in `entries`, bool [entries]: int32 [their pages]."""
        return self.ids[np.repeat(entries, np.diff(self.indptr))]

    def within(self, indptr: NDArray[np.int64]) -> PageTable:
        """The table without the entries that are empty in `indptr`; in it, all others must be as long as they are."""
        return PageTable(self.ids_of(np.diff(indptr) > 0), indptr, self._num_kv_heads)

    def on(self, device: torch.device) -> Tensor:
        """All ids on the device, int32 [pages of the chunk]."""
        if device.type == "cpu":
            return torch.from_numpy(self.ids)
        if self._on_device is None or self._on_device.device != device:
            self._on_device = torch.from_numpy(self.ids).to(device)
            self._gathered.clear()
        return self._on_device

    def _bounds(self, kind: str, layer: int, first: int, last: int) -> tuple[int, int]:
        """Where the ids of neighbouring heads begin and end in `ids`."""
        entry = ((kind == "values") * self._num_layers + layer) * self._num_kv_heads
        return int(self.indptr[entry + first]), int(self.indptr[entry + last + 1])
