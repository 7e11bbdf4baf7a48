"""Where a step would wait for a GPU, found without one (without_kernels.py). Copies to the device wait, too, when they
come from memory that is not pinned: past the first layer there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid.attention import commit_correction
from pagedvid.attention.page_runs import runs_of_layers
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.book import CodecBook
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.projective_reference import SeededProjection
from tests.attention.reference import TableRope
from tests.attention.without_kernels import META, Copies, leave_out_kernels, on_meta
from tests.codecs.klt.kernels.scenes import klt_codec

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu.py checks on the device itself")
HEAD_DIM, LAYERS, KV_HEADS, GROUP = 32, 3, 2, 3
FRAME_TOKENS, NUM_FRAMES = 10, 3
NUM_TOKENS = FRAME_TOKENS * NUM_FRAMES
CODECS = ("int2", "int4/int2", "int2-pair-s8", "int4-post", "bf16", "token4-g32", "hadamard4-g32", "klt2")


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_kernels(monkeypatch)


def make_cache(codec: str | StreamCodecs, **settings: Any) -> PagedKVCache:
    calibrated = klt_codec("klt2", HEAD_DIM, KV_HEADS, 8, FRAME_TOKENS, NUM_FRAMES)
    spec = CacheSpec(
        LAYERS,
        KV_HEADS,
        HEAD_DIM,
        num_query_heads=KV_HEADS * GROUP,
        codecs=StreamCodecs(codec) if isinstance(codec, str) else codec,
        page_rows=8,
        tokens_per_frame=FRAME_TOKENS,
        frames_per_block=NUM_FRAMES,
        **settings,
    )
    book = CodecBook(calibrated.page, KV_HEADS, own={"klt2": calibrated})
    return on_meta(PagedKVCache(spec, "1MiB", book=book))


def qkv(num_ranges: int = 1) -> list[Tensor]:
    heads = (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)
    return [torch.empty(num_ranges * NUM_TOKENS, count, HEAD_DIM, dtype=torch.bfloat16, device=META) for count in heads]


@contextmanager
def no_waiting() -> Iterator[None]:
    copies = Copies()
    with copies.noted():
        yield
    assert not copies.by_place, f"copied between the devices: {dict(copies.by_place)}"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("correction", ["off", "variance", "measured"])
@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
def test_in_no_layer_but_the_first(codec: str, correction: str, keys_arrive: str) -> None:
    """The first layer of a commit pass makes the tables; the second and later denoise steps of a chunk reuse them."""
    cache, rope = (
        make_cache(codec, correction=correction, keys_arrive=keys_arrive),
        TableRope("interleaved", HEAD_DIM),
    )
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    for _ in range(2):
        with cache.commit([stream]) as step:
            step.attend(0, *qkv(), rope)
            with no_waiting():
                step.attend(1, *qkv(), rope)
                step.attend(2, *qkv(), rope)
    with cache.denoise([stream]) as step:
        step.attend(0, *qkv(), rope)
        with no_waiting():
            step.attend(0, *qkv(), rope)
            step.attend(1, *qkv(), rope)


@pytest.mark.parametrize("codecs", ["int2", "int4/int2", "token4-g32", StreamCodecs("int2", newest="int4")], ids=str)
@pytest.mark.parametrize("correction", ["formula", "measured"])
def test_with_pages_as_the_unit_of_correction(codecs: str | StreamCodecs, correction: str) -> None:
    cache, rope = make_cache(codecs, correction=correction, correction_unit="page"), TableRope("half", HEAD_DIM)
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    for _ in range(3):
        with cache.commit([stream]) as step:
            step.attend(0, *qkv(), rope)
            with no_waiting():
                step.attend(1, *qkv(), rope)
                step.attend(2, *qkv(), rope)
    assert all(len(chunk.runs[layer]) == 2 for chunk in stream.chunks() for layer in range(LAYERS))
    with cache.denoise([stream]) as step:
        step.attend(0, *qkv(), rope)
        with no_waiting():
            step.attend(0, *qkv(), rope)
            step.attend(1, *qkv(), rope)


def test_the_runs_of_all_layers_are_read_in_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last layer."""
    cache, waits = make_cache("int2", correction_unit="page"), []
    stream = cache.open(Window(1, 2), NUM_TOKENS)

    def to_cpu(tensor: Tensor) -> Tensor:
        waits.append(tensor.shape)
        return torch.zeros(tensor.shape)

    monkeypatch.setattr(commit_correction, "runs_of_layers", runs_of_layers)
    monkeypatch.setattr(Tensor, "cpu", to_cpu)
    with cache.commit([stream]) as step:
        for layer in range(LAYERS):
            assert not waits
            step.attend(layer, *qkv())
    assert len(waits) == 1


def test_with_chunks_that_change_codec_and_ranges_of_all_kinds() -> None:
    """Sinks and the newest chunk have codecs of their own, so that commits read and rewrite older chunks; a text;
    ranges that see each other; a projective view."""
    cache = make_cache(StreamCodecs("klt2", sink="int8", newest="bf16"), correction="variance")
    rope, projection = TableRope("interleaved", HEAD_DIM), SeededProjection(FRAME_TOKENS, "interleaved")
    streams = [cache.open(Window(1, 2, positions="window"), NUM_TOKENS) for _ in range(2)]
    tag = (0, NUM_FRAMES)
    for _ in range(4):
        with cache.step([QueryRange(stream, commit=True, tag=tag) for stream in streams]) as step:
            step.attend(0, *qkv(2), rope)
            with no_waiting():
                step.attend(1, *qkv(2), rope)
                step.attend(2, *qkv(2), rope)
    ranges = [QueryRange(streams[0], tag=tag), QueryRange(streams[1], tag=tag, sees_ranges=(0,))]
    text = torch.empty(5, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=META)
    options = {"projections": [projection], "context": [(text, text), None]}
    with cache.step(ranges) as step:
        step.attend(0, *qkv(2), rope, **options)
        with no_waiting():
            step.attend(0, *qkv(2), rope, **options)
            step.attend(1, *qkv(2), rope, **options)


@pytest.mark.parametrize(
    "copy",
    [
        lambda there: torch.zeros(3).to(META),
        lambda there: there.copy_(torch.zeros(3)),
        lambda there: torch.tensor([1.0], device=META),
        lambda there: there.new_tensor(1.0),
        lambda there: there[[0, 2]],
        lambda there: there[torch.tensor([0, 2])],
    ],
)
def test_a_copy_is_seen(copy) -> None:
    with pytest.raises(AssertionError, match="'outside of pagedvid': 1"), no_waiting():
        copy(torch.empty(3, device=META))


def test_what_stays_on_its_device_is_none() -> None:
    with no_waiting():
        there = torch.arange(3, device=META)
        there[0] = 2 * there[1] + torch.tensor(1)
