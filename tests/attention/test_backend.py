"""Choosing a backend, and the reasons of those that cannot run."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from pagedvid.attention import backend
from pagedvid.attention.backend import backend_names, backend_reasons, select_backend
from pagedvid.attention.torch_backend import TorchBackend
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
    assert TorchBackend.unsupported_reasons(SPEC, torch.device("cpu")) == []
    monkeypatch.setattr(torch.ops, "aten", object())
    (reason,) = TorchBackend.unsupported_reasons(SPEC, torch.device("cpu"))
    assert torch.__version__ in reason and "2.6 or newer" in reason


class FastBackend:
    """Cannot run here."""

    def __init__(self, *_: object) -> None:
        raise AssertionError("created although it cannot run")

    @staticmethod
    def unsupported_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
        return ["needs a GPU"]


def test_auto_passes_over_what_cannot_run(monkeypatch):
    monkeypatch.setattr(backend, "_BACKENDS", {"fast": f"{__name__}:FastBackend", **backend._BACKENDS})
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(FastBackend=FastBackend))
    assert select("auto").name == "torch"
    with pytest.raises(BackendError, match=r"can run on cpu: fast: needs a GPU$"):
        select("fast")
    with pytest.raises(BackendError, match="fast: needs a GPU; torch: it runs on the device cpu"):
        select("auto", device="meta")


def test_a_backend_whose_library_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(backend, "_BACKENDS", {"other": "no_such_library:Backend"})
    assert backend_reasons(SPEC, torch.device("cpu")) == {
        "other": ["no_such_library is not installed (pip install no_such_library)"]
    }
