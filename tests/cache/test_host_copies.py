"""Copies through a pinned block: what is waited for and when, with a GPU's streams played by a recorder."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pagedvid.cache.host_copies import HostCopies
from pagedvid.cache.pool import PagePool

PAGE_BYTES, BLOCK_PAGES = 8, 3


class Recorder:
    """Takes the place of `torch.cuda`: every call is noted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.num_events = 0

    def current_stream(self, device: torch.device) -> Recorder:
        return self

    def record_event(self) -> str:
        self.num_events += 1
        self.calls.append(f"record {self.num_events}")
        return str(self.num_events)

    def wait_event(self, event: str) -> None:
        self.calls.append(f"wait for {event}")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    @contextmanager
    def stream(self, stream: Recorder):
        self.calls.append("begin")
        yield
        self.calls.append("end")


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder = Recorder()
    for name in ("current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(recorder, name))
    return recorder


@pytest.fixture
def copies(recorder) -> HostCopies:
    """As on a GPU, with pages that are on the CPU and a block that is not pinned."""
    pool = PagePool(20, PAGE_BYTES)
    pool.records.copy_(torch.arange(20 * PAGE_BYTES).view(20, PAGE_BYTES))
    copies = HostCopies(pool)
    copies._is_gpu = True
    copies.__dict__["_stream"] = recorder
    copies.__dict__["_block"] = torch.full((BLOCK_PAGES, PAGE_BYTES), 255, dtype=torch.uint8)
    return copies


def test_copying_out_waits_for_what_was_written_and_not_for_what_was_queued_since(copies, recorder):
    copies.note_writes()
    copies._now()  # a denoise step
    recorder.calls.clear()
    ids = np.array([3, 19, 0, 7, 8, 11, 2], dtype=np.int32)
    records = copies.pages_out(ids)
    assert torch.equal(records, copies._pool.records[torch.from_numpy(ids).long()])
    assert recorder.calls == ["wait for 1", "begin", "end", "synchronize"] * 3


def test_copying_in_waits_for_all_that_may_read_the_pages(copies, recorder):
    ids = np.array([5, 6, 1, 18], dtype=np.int32)
    records = torch.randint(0, 256, (4, PAGE_BYTES), dtype=torch.uint8)
    before = copies._pool.records.clone()
    copies.pages_in(ids, records)
    assert torch.equal(copies._pool.records[torch.from_numpy(ids).long()], records)
    others = sorted(set(range(20)) - set(ids.tolist()))
    assert torch.equal(copies._pool.records[others], before[others])
    assert recorder.calls == ["record 1", *["wait for 1", "begin", "end", "synchronize"] * 2]


def test_small_tensors_wait_likewise(copies, recorder):
    x = torch.randn(2, 3)
    assert torch.equal(copies.out(x), x) and copies.out(None) is None
    assert recorder.calls == ["begin", "end", "synchronize"]  # nothing was ever written


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_elsewhere_nothing_is_pinned_or_waited_for(recorder, device):
    copies = HostCopies(PagePool(20, PAGE_BYTES, device))
    ids = np.array([3, 19, 0], dtype=np.int32)
    copies.note_writes()
    records = copies.pages_out(ids)
    copies.pages_in(ids[::-1].copy(), records)
    assert records.shape == (3, PAGE_BYTES) and records.device.type == device
    if device == "cpu":
        assert torch.equal(copies.pages_out(ids), records.flip(0))
    assert recorder.calls == []
