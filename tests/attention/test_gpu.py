"""What only a GPU can show: both backends on it give what the CPU backend gives. Skipped elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.geometry import RoleCodecs, Window
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import TableRope

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HEAD_DIM, LAYERS, KV_HEADS, GROUP = 128, 2, 2, 3
ROPE = TableRope("interleaved", HEAD_DIM)


def video(device: str, backend: str, codec: str, dtype: torch.dtype) -> list[Tensor]:
    """Outputs of three chunks of two streams, committed one after the other, and of a denoise step after them."""
    spec = CacheSpec(LAYERS, KV_HEADS, HEAD_DIM, num_query_heads=KV_HEADS * GROUP, codecs=RoleCodecs(codec))
    cache = PagedKVCache(spec, "64MiB", device, backend=backend)
    streams = [cache.open(Window(1, 2), 1560) for _ in range(2)]
    generator, outs = torch.Generator().manual_seed(0), []
    for number in range(4):
        ranges = [QueryRange(streams[0], commit=number < 3), QueryRange(streams[1], num_tokens=17, commit=number < 3)]
        with cache.step(ranges) as step:
            for layer in range(LAYERS):
                q, k, v = (
                    torch.randn(1577, heads, HEAD_DIM, generator=generator).to(device, dtype)
                    for heads in (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)
                )
                outs.append(step.attend(layer, q, k, v, ROPE).float().cpu())
    return outs


@pytest.mark.parametrize("backend", ["scratch", "fused"])
@pytest.mark.parametrize("codec", ["int2", "int4/int2", "bf16"])
def test_equals_the_cpu_backend(backend: str, codec: str) -> None:
    expected = video("cpu", "torch", codec, torch.bfloat16)
    for out, reference in zip(video("cuda", backend, codec, torch.bfloat16), expected, strict=True):
        assert (out - reference).norm() < 0.03 * reference.norm()


@pytest.mark.parametrize("backend", ["scratch", "fused"])
def test_float32(backend: str) -> None:
    expected = video("cpu", "torch", "int4", torch.float32)
    for out, reference in zip(video("cuda", backend, "int4", torch.float32), expected, strict=True):
        assert (out - reference).norm() < 5e-3 * reference.norm()


@pytest.mark.parametrize("backend", ["scratch", "fused"])
def test_nothing_in_a_denoise_step_waits_for_the_device(backend: str) -> None:
    """From the second step of a chunk on: its tables are there."""
    spec = CacheSpec(1, KV_HEADS, HEAD_DIM, codecs=RoleCodecs("int2"))
    cache = PagedKVCache(spec, "64MiB", "cuda", backend=backend)
    stream = cache.open(Window(1, 2), 300)
    q, k, v = (torch.randn(300, KV_HEADS, HEAD_DIM, device="cuda").bfloat16() for _ in range(3))
    with cache.commit([stream]) as step:
        step.attend(0, q, k, v, ROPE)
    with cache.denoise([stream]) as step:
        step.attend(0, q, k, v, ROPE)  # compiles, makes the tables
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.attend(0, q, k, v, ROPE)
        finally:
            torch.cuda.set_sync_debug_mode("default")
