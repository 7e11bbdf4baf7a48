"""Choosing a backend, and the reasons of those that cannot run."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

from pagedvid.attention import backend
from pagedvid.attention.backend import backend_names, backend_reasons, select_backend
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
        assert select("auto").name == "torch"
    assert "attention backend: torch" in caplog.text


def test_a_backend_can_be_named():
    assert select("torch").name == "torch"
    assert backend_names()[0] == "auto" and "torch" in backend_names()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BackendError, match="unknown attention backend 'cudnn'; allowed are auto, triton, torch"):
        select("cudnn")
    with pytest.raises(BackendError, match="allowed are auto, triton, torch"):
        PagedKVCache(SPEC, "1MiB", backend="cudnn")


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_reasons_of_every_candidate_are_listed(name):
    with pytest.raises(BackendError, match=r"can run on meta: .*torch: no library for dense keys runs on meta"):
        select(name, device="meta")


def test_the_torch_backend_runs_where_a_dense_library_does(monkeypatch):
    assert backend_reasons(SPEC, torch.device("cpu")) == {"triton": ["it runs on cuda, not on cpu"], "torch": []}
    monkeypatch.setattr(backend, "provider_reasons", lambda *_: {"one": ["is too old"], "other": ["is missing"]})
    assert backend_reasons(SPEC, torch.device("cpu"))["torch"] == [
        "no library for dense keys runs on cpu with head_dim 8; see `pagedvid env`"
    ]


def test_auto_passes_over_what_cannot_run(monkeypatch):
    assert select("auto").name == "torch"
    with pytest.raises(BackendError, match=r"can run on cpu: triton: it runs on cuda, not on cpu$"):
        select("triton")


def test_kernels_need_triton_and_a_head_size_that_they_know(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(backend, "provider_reasons", lambda *_: {"one": []})
    assert backend_reasons(SPEC, torch.device("cuda"))["triton"] == [
        "head_dim is 8; it must be a power of two, 32 or more"
    ]
    monkeypatch.setitem(sys.modules, "pagedvid.codecs.triton_common", None)
    (reason,) = backend_reasons(SPEC, torch.device("cuda"))["triton"]
    assert "is not installed" in reason
