"""History in 8-bit floats behind `step.attend`, on the CPU's emulation of the library for GPUs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.errors import ConfigError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import TableRope, random_qkv
from tests.attention.scenes import commit_all

HEAD_DIM = 64
ROPE = TableRope("half", HEAD_DIM)
BY_HEAD = StreamCodecs(ChunkCodecs.read("int4", heads=[(1, 1, 1, "int8/int4"), (1, 2, 2, "int4/int8")]))
"""In the second layer, the first and the last head share a codec of keys."""


def output(history_dtype: str, codecs: StreamCodecs | str, scratch: str = "8MiB", **settings) -> Tensor:
    """Of a second layer's denoise step after four chunks, grouped heads, queries in bfloat16."""
    codecs = StreamCodecs(codecs) if isinstance(codecs, str) else codecs
    spec = CacheSpec(2, 3, HEAD_DIM, num_query_heads=6, codecs=codecs, **settings)
    cache = PagedKVCache(spec, "16MiB", scratch=scratch, history_dtype=history_dtype)
    stream = cache.open(Window(1, 3), 150)
    commit_all(cache, stream, [150, 150, 70, 150], 1, ROPE)
    with cache.denoise([stream]) as step:
        for layer in range(2):
            q, k, v = random_qkv(cache, 150, 50 + layer, torch.bfloat16)
            out = step.attend(layer, q, k, v, ROPE)
    return out.float()


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("correction", ["off", "measured"])
@pytest.mark.parametrize("codecs", ["int2", "int8", StreamCodecs("int4/int2", sink="bf16"), BY_HEAD], ids=str)
def test_it_differs_by_what_eight_bits_round(codecs, correction: str) -> None:
    exact = output("bf16", codecs, correction=correction)
    rounded = output("fp8", codecs, correction=correction)
    assert 1e-3 < difference(rounded, exact) < 0.12


def test_the_size_of_the_scratch_does_not_matter() -> None:
    assert difference(output("fp8", "int4", "1KiB"), output("fp8", "int4")) < 0.02


def test_chunks_in_plain_values_stay_as_they_are() -> None:
    assert torch.equal(output("fp8", "bf16"), output("bf16", "bf16"))


def test_auto_does_not_take_the_emulation() -> None:
    assert torch.equal(output("auto", "int2-pair"), output("bf16", "int2-pair"))


def test_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="history_dtype is 'fp4'; allowed are auto, bf16, fp8"):
        PagedKVCache(CacheSpec(1, 1, 64), "1MiB", history_dtype="fp4")
