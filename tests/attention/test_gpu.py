"""What only a GPU can show: the kernels on it give what the CPU backend gives, and never wait. Skipped elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.book import CodecBook
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.projective_reference import SeededProjection
from tests.attention.reference import TableRope
from tests.codecs.klt.kernels.scenes import klt_codec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HEAD_DIM, LAYERS, KV_HEADS, GROUP = 128, 3, 2, 3
ROPE = TableRope("interleaved", HEAD_DIM)
FRAME_TOKENS, BLOCK_FRAMES = 52, 3
CODECS = ("int2", "int4/int2", "int2-pair-s8", "bf16", "token4-g64", "hadamard4-g64", "klt2")


def make_cache(device: str, backend: str, codec: str, group: int = GROUP, **settings) -> PagedKVCache:
    """klt with made-up tables."""
    calibrated = klt_codec("klt2", HEAD_DIM, KV_HEADS, 32, FRAME_TOKENS, BLOCK_FRAMES)
    own = {"klt2": calibrated} if codec == "klt2" else {}
    spec = CacheSpec(
        LAYERS,
        KV_HEADS,
        HEAD_DIM,
        num_query_heads=KV_HEADS * group,
        codecs=StreamCodecs(codec),
        page_rows=calibrated.page.rows,
        tokens_per_frame=FRAME_TOKENS,
        frames_per_block=BLOCK_FRAMES,
        **{"correction": "measured", **settings},
    )
    book = CodecBook(calibrated.page, KV_HEADS, own=own)
    return PagedKVCache(spec, "64MiB", device, backend=backend, book=book)


def random_tokens(num_tokens: int, num_heads: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num_tokens, num_heads, HEAD_DIM, generator=generator)


def video(device: str, backend: str, codec: str, dtype: torch.dtype, **options) -> list[Tensor]:
    """Outputs of three chunks of two streams, committed one after the other, and of a denoise step after them."""
    cache = make_cache(device, backend, codec)
    streams = [cache.open(Window(1, 2), 1560) for _ in range(2)]
    generator, outs = torch.Generator().manual_seed(0), []
    for number in range(4):
        lengths = 1560, FRAME_TOKENS
        ranges = [
            QueryRange(stream, num_tokens=n, commit=number < 3, tag=(number, n // FRAME_TOKENS))
            for stream, n in zip(streams, lengths, strict=True)
        ]
        with cache.step(ranges) as step:
            for layer in range(LAYERS):
                q, k, v = (
                    random_tokens(sum(lengths), heads, generator).to(device, dtype)
                    for heads in (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)
                )
                outs.append(step.attend(layer, q, k, v, ROPE, **options).float().cpu())
    return outs


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [*((codec, torch.bfloat16) for codec in CODECS), ("int2", torch.float16), ("klt2", torch.float16)],
)
def test_equals_the_cpu_backend(codec: str, dtype: torch.dtype) -> None:
    expected = video("cpu", "torch", codec, dtype)
    for out, reference in zip(video("cuda", "triton", codec, dtype), expected, strict=True):
        assert (out - reference).norm() < 0.03 * reference.norm()


def test_float32() -> None:
    expected = video("cpu", "torch", "int4", torch.float32)
    for out, reference in zip(video("cuda", "triton", "int4", torch.float32), expected, strict=True):
        assert (out - reference).norm() < 5e-3 * reference.norm()


def test_a_projective_view() -> None:
    projection = SeededProjection(FRAME_TOKENS, "interleaved")
    expected = video("cpu", "torch", "int4", torch.bfloat16, projections=[projection])
    got = video("cuda", "triton", "int4", torch.bfloat16, projections=[projection])
    for out, reference in zip(got, expected, strict=True):
        assert (out - reference).norm() < 0.03 * reference.norm()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def device_tokens(num_tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [random_tokens(num_tokens, KV_HEADS, generator).to("cuda", torch.bfloat16) for _ in range(3)]


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_in_a_denoise_step_waits_for_the_device(codec: str) -> None:
    """From a chunk's second step on, when its tables are there."""
    cache = make_cache("cuda", "triton", codec, group=1)
    stream, qkv = cache.open(Window(1, 2), 312), device_tokens(312)
    with cache.commit([stream]) as step:
        for layer in range(LAYERS):
            step.attend(layer, *qkv, ROPE)
    with cache.denoise([stream]) as step:
        step.attend(0, *qkv, ROPE)  # compiles, makes the tables
        with no_waiting():
            step.attend(0, *qkv, ROPE)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("correction", ["off", "measured"])
def test_nothing_in_a_commit_pass_waits_before_its_last_layer(codec: str, correction: str) -> None:
    cache = make_cache("cuda", "triton", codec, group=1, correction=correction)
    stream, qkv = cache.open(Window(1, 2), 312), device_tokens(312)
    for guard in (nullcontext, no_waiting):  # the first pass compiles
        with cache.commit([stream]) as step:
            step.attend(0, *qkv, ROPE)  # makes the tables
            with guard():
                step.attend(1, *qkv, ROPE)
            step.attend(2, *qkv, ROPE)


@pytest.mark.parametrize("codec", ["int2", "klt2"])
def test_a_denoise_step_runs_as_a_graph(codec: str) -> None:
    """Captured once and replayed with other queries, as engines do: static tables and buffers."""
    cache = make_cache("cuda", "triton", codec, group=1, correction="off")
    stream, qkv = cache.open(Window(1, 2), 312), device_tokens(312)
    with cache.commit([stream]) as step:
        for layer in range(LAYERS):
            step.attend(layer, *qkv, ROPE)
    with cache.denoise([stream]) as step:
        step.attend(0, *qkv, ROPE)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step.attend(0, *qkv, ROPE)
        qkv[0].mul_(0.5)
        graph.replay()
        torch.testing.assert_close(out, step.attend(0, *qkv, ROPE), rtol=0, atol=1e-2)
