"""docs/calibrate.md: its code runs as shown, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pagedvid import CacheSpec, PagedKVCache, StreamCodecs
from pagedvid.codecs.spec import block_frames
from pagedvid.codecs.tables_file import load_calibration
from pagedvid.errors import ConfigError

PAGE = (Path(__file__).parents[2] / "docs" / "calibrate.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names of the page after all its code has run, in a folder of its own; and what it printed."""
    names: dict[str, Any] = {"__name__": "calibrate", "printed": []}
    names["print"] = names["printed"].append
    assert len(EXAMPLES) == 5
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("calibrate"))
        for example in EXAMPLES:
            exec(compile(example, "docs/calibrate.md", "exec"), names)
        names["folder"] = Path.cwd()
    return names


def test_from_the_hosts_loop_to_a_cache_with_tables_it_takes_few_lines():
    assert len([line for line in EXAMPLES[1].splitlines() if line.strip()]) <= 25


def test_the_file_is_of_what_was_observed(host):
    tables = load_calibration(host["folder"] / "tables.safetensors")
    assert (tables.model, tables.calibrated_on) == ("my model", "6 videos of 5 chunks")
    assert (tables.tokens_per_frame, tables.frames_per_block) == (24, 4) and block_frames(4) == 4
    assert str(next(iter(host["cache"].spec.codecs.all()))) == "klt1.5/klt3"
    assert host["cache"].spec.correction == "off"
    host["cache"].check()


def test_klt_is_much_closer_than_int2_at_equal_bits(host):
    """On a scene that hardly moves, which is what the page's videos are."""
    klt, int2, by_head = (float(line.split()[-1]) for line in host["printed"])
    assert klt < int2 / 2 and by_head < int2
    bits = [
        cache.shape.bits_per_value(96, cache.spec.codecs.steady)
        for cache in (host["cache"], PagedKVCache(CacheSpec(**host["SHAPE"]), "1MiB"))
    ]
    assert bits[0] <= bits[1]


def test_tensors_serve_as_well(host):
    assert host["calibration"].calibrated_on == "4 chunks"
    assert all(torch.isfinite(x).all() for x in host["calibration"].tensors.values())


def test_what_is_wrong_is_said(host):
    path, shape = host["folder"] / "tables.safetensors", host["SHAPE"]
    klt = StreamCodecs("klt2")
    for change, message in (
        ({"num_layers": 3}, "with 2 layers; the cache has 3"),
        ({"num_kv_heads": 4}, "with 2 KV heads; the cache has 4"),
        ({"head_dim": 64}, r"\(32, 24, 4\); the cache has \(64, 24, 4\)"),
        ({"tokens_per_frame": 12}, r"\(32, 24, 4\); the cache has \(32, 12, 4\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            PagedKVCache(CacheSpec(**{**shape, **change}, codecs=klt), "4MiB", tables=path)
    spec = CacheSpec(**shape, codecs=klt)
    with pytest.raises(ConfigError, match="klt2 needs tables"):
        PagedKVCache(spec, "4MiB")
    with pytest.raises(ConfigError, match=r"none.safetensors is missing"):
        PagedKVCache(spec, "4MiB", tables=host["folder"] / "none.safetensors")
    with pytest.raises(ConfigError, match="both tables and book are given"):
        PagedKVCache(spec, "4MiB", tables=path, book=host["cache"].book)
