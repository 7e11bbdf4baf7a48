"""docs/embed.md: its code runs as shown, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pagedvid
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Window
from pagedvid.correction import MODES
from tests.docs.pages import DOCS, code_blocks

PAGE = (Path(__file__).parents[2] / "docs" / "embed.md").read_text()


def run(names: dict[str, Any], *numbers: int) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 4
    for number in numbers:
        exec(compile(examples[number], "docs/embed.md", "exec"), names)


@pytest.fixture
def host(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The names of the page's host, after it has run."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "embed"}
    run(names, 0)
    assert "needs 360 pages" in capsys.readouterr().out, "the pool is full at some point, and the host says so"
    return names


def test_the_host_runs(host):
    cache, batch, twin = host["cache"], host["batch"], host["twin"]
    assert len(batch) == 4 and cache.streams == (*batch, twin)
    for stream in cache.streams:
        assert stream.num_committed == 6
        kept = {chunk.index: str(chunk.codecs) for chunk in stream.chunks()}
        assert kept == {0: "int8", 3: "int2", 4: "int2", 5: "int2"}
    assert list(twin.chunks()) == list(batch[0].chunks())
    assert all(torch.isfinite(x).all() for x in host["latents"])
    cache.check()


def test_an_error_in_the_commit_pass_leaves_all_streams_as_they_were(host, capsys):
    """The page's own error handling, with latents that overflow."""
    cache = host["cache"]
    before = cache.stats()
    loop = re.search(r"    try:\n        with cache.commit.*?print\(error\)\n", PAGE, re.DOTALL)
    assert loop is not None
    host["latents"] = torch.full((4 * 200, 128), torch.nan)
    exec(compile("if True:\n" + loop[0], "docs/embed.md", "exec"), host)
    assert "chunk 6 cannot be stored" in capsys.readouterr().out
    assert cache.stats() == before
    cache.check()


def test_the_dense_host_runs(host):
    run(host, 1)
    assert host["stream"].num_committed == 3
    assert host["attended"].shape == (200, 4, 32) and torch.isfinite(host["attended"]).all()
    assert host["view"].k.shape == (600, 4, 32)
    host["cache"].check()


def test_the_compiled_host_gives_what_the_eager_one_gives(host):
    with torch.no_grad():
        run(host, 2)
        model, x, cache = host["model"], host["latents"], host["cache"]
        with cache.denoise(host["batch"]) as step, torch.compiler.set_stance("fail_on_recompile"):
            compiled = model(x, step)
        with cache.denoise(host["batch"]) as step, torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(compiled, model(x, step), rtol=1e-4, atol=1e-4)


def test_the_diffusers_host_runs_in_twelve_lines():
    names: dict[str, Any] = {"__name__": "embed"}
    run(names, 3)
    stats = names["paged"].cache.stats()
    assert stats.pages_peak > 0 and stats.num_evicted_chunks == 3 and stats.num_streams == 0
    assert torch.isfinite(names["latents"]).all()
    (example,) = [block for block in code_blocks(DOCS / "embed.md", "python") if "enable_paged_cache" in block]
    lines = [line for line in example.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 12


def test_what_the_diffusers_cache_saves_is_computed():
    """Self-Forcing's window of 21 frames: 1 sink, 5 recent and the current chunk."""
    prose = " ".join(PAGE.split())
    (quoted,) = re.findall(
        r"reserves ([\d.]+) GiB for a stream with BF16 pages, ([\d.]+) GiB with int4 and ([\d.]+) GiB with int2", prose
    )
    for codec, gib in zip(("bf16", "int4", "int2"), quoted, strict=True):
        spec = CacheSpec(num_layers=30, num_kv_heads=12, head_dim=128, codecs=StreamCodecs(codec))
        pages = peak_pages(spec.shape, Window(1, 5), spec.codecs, 3 * 30 * 52, None)
        assert f"{pages * spec.shape.page_bytes / 2**30:.2f}" == gib


def test_what_the_page_names_exists():
    """Corrections, settings and methods in `code`."""
    listed = re.findall(r'^\| `"(\w+)"` \|', PAGE, re.MULTILINE)
    assert set(listed) == set(MODES)
    assert f"`{CacheSpec.correction}`, the default" in PAGE
    rows = dict(re.findall(r'^\| `"(\w+)"` \|(.*)$', PAGE, re.MULTILINE))
    for codec in ("int2", "klt2"):
        chosen = CacheSpec(1, 1, 64, codecs=StreamCodecs(codec)).correction
        assert rows.pop(chosen).endswith("the default then |")
    assert not any("default" in row for row in rows.values())
    methods = {name for name in re.findall(r"`cache\.(\w+)", PAGE)}
    assert {"pin", "replace", "step", "stats", "check"} <= methods
    assert all(hasattr(pagedvid.PagedKVCache, name) for name in methods)


def test_codecs_are_written_as_the_page_writes_them():
    """Exceptions by layer are a mapping."""
    (written,) = re.findall(r"`(StreamCodecs\(.*layers=.*\))`", PAGE)
    codecs = eval(written, {"StreamCodecs": StreamCodecs}).steady
    assert [codecs.of("keys", layer).name for layer in range(7)] == ["int8", "int4", *["int8"] * 4, "int4"]
    assert [codecs.of("values", layer).name for layer in (0, 1, 2)] == ["int8", "int2", "int4"]
