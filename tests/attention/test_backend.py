"""Choosing a backend, and the reasons of those that cannot run."""

from __future__ import annotations

import logging

import pytest
import torch

from pagedvid.attention import backend
from pagedvid.attention.backend import backend_names, select_backend
from pagedvid.attention.torch_backend import TorchBackend, unsupported_reasons
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.book import CodecBook
from pagedvid.errors import BackendError
from pagedvid.paged_kv_cache import PagedKVCache

SPEC = CacheSpec(1, 1, 8)


def select(name: str, device: str = "cpu"):
    return select_backend(name, PagePool(4, 288, device), SPEC, CodecBook(SPEC.shape.page, 1), 1024)


def test_auto_takes_the_first_that_can_run_and_says_which(caplog):
    with caplog.at_level(logging.INFO, logger="pagedvid"):
        assert isinstance(select("auto"), TorchBackend)
    assert "attention backend: torch" in caplog.text


def test_a_backend_can_be_named():
    assert select("torch").name == "torch"
    assert backend_names()[0] == "auto" and "torch" in backend_names()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BackendError, match="unknown attention backend 'cudnn'; allowed are auto, torch"):
        select("cudnn")
    with pytest.raises(BackendError, match="allowed are auto, torch"):
        PagedKVCache(SPEC, "1MiB", backend="cudnn")


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_reasons_of_every_candidate_are_listed(name):
    with pytest.raises(BackendError, match=r"can run on meta: torch: it runs on the device cpu, not on meta"):
        select(name, device="meta")


def test_the_torch_backend_runs_on_cpu_and_needs_its_kernel(monkeypatch):
    assert unsupported_reasons(SPEC, torch.device("cpu")) == []
    monkeypatch.setattr(torch.ops, "aten", object())
    (reason,) = unsupported_reasons(SPEC, torch.device("cpu"))
    assert torch.__version__ in reason and "2.6 or newer" in reason


def test_auto_passes_over_what_cannot_run(monkeypatch):
    def creator(pool, spec, book, scratch_bytes):
        raise AssertionError("created although it cannot run")

    creators = {"fast": (lambda spec, device: ["needs a GPU"], creator), **backend._CREATORS}
    monkeypatch.setattr(backend, "_CREATORS", creators)
    assert select("auto").name == "torch"
    with pytest.raises(BackendError, match=r"can run on cpu: fast: needs a GPU$"):
        select("fast")
    with pytest.raises(BackendError, match="fast: needs a GPU; torch: it runs on the device cpu"):
        select("auto", device="meta")
