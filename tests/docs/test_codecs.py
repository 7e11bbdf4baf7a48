"""docs/codecs.md: its codec runs as shown, and the codecs that its table names exist."""

from __future__ import annotations

import re
import sys
from types import ModuleType

import pytest
import torch

from pagedvid import CacheSpec, PagedKVCache, StreamCodecs, Window
from pagedvid.codecs import registry
from pagedvid.correction import MODES
from tests.docs.pages import DOCS, code_blocks, prose, tables

PAGE = DOCS / "codecs.md"


@pytest.fixture
def half(monkeypatch):
    """The page's file, imported, and forgotten after the test."""
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    module = ModuleType("my_codecs")
    monkeypatch.setitem(sys.modules, "my_codecs", module)
    (example,) = code_blocks(PAGE, "python")
    exec(compile(example, "my_codecs.py", "exec"), module.__dict__)
    yield
    registry.read_codec.cache_clear()


def test_the_codec_of_the_page_stores_fp16(half):
    cache = PagedKVCache(CacheSpec(1, 2, 16, codecs=StreamCodecs("half", sink="half/int8")), "1MiB")
    stream = cache.open(Window(1, 1), chunk_tokens=40)
    given = []
    for _ in range(2):
        with cache.commit([stream]) as step:
            q, k, v = torch.randn(3, 40, 2, 16, generator=torch.Generator().manual_seed(len(given)))
            assert torch.isfinite(step.attend(0, q, k, v)).all()
        given.append((k, v))
    for chunk, (k, v) in enumerate(given):
        stored = cache.read(stream, chunk, 0)
        assert torch.equal(stored.k, k.half().float()) and not stored.quant_errors
        assert torch.equal(stored.v, v.half().float()) == (chunk == 1), "the sink's values are in int8"
    cache.check()


def test_codecs_of_the_table_exist():
    (table,) = (table for table in tables(PAGE) if "`bf16`, `fp32`" in table)
    names = [name for names in table for name in re.findall(r"`([a-z]+[\w.-]*)`", names)]
    assert {"klt1.5", "int2", "hadamard2-g64", "fp32"} <= set(names)
    for name in names:
        registry.read_codec(name)


def test_corrections_of_the_page_exist():
    section = re.split("^## ", prose(PAGE), flags=re.MULTILINE)[3]
    assert section.startswith("The correction")
    assert set(re.findall(r"^- `(\w+)`[,:]", section, re.MULTILINE)) == set(MODES)
