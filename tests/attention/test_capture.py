"""A denoise step that has run once can be captured in a CUDA graph: the rules of capture_rules.py, on "meta"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.book import CodecBook
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.capture_rules import Capture, note_launches
from tests.attention.projective_reference import SeededProjection
from tests.attention.reference import TableRope
from tests.attention.without_kernels import META, Copies, leave_out_kernels, on_meta
from tests.codecs.klt.kernels.scenes import klt_codec

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are left out, which a GPU does not need")
HEAD_DIM, LAYERS, KV_HEADS, GROUP = 32, 2, 2, 3
FRAME_TOKENS, NUM_FRAMES = 10, 3
TOKENS = FRAME_TOKENS * NUM_FRAMES
MORE_STEPS = 20


@pytest.fixture
def _without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_kernels(monkeypatch)
    note_launches(monkeypatch)


def make_cache(codec: str, **settings: Any) -> PagedKVCache:
    calibrated = klt_codec("klt2", HEAD_DIM, KV_HEADS, 8, FRAME_TOKENS, NUM_FRAMES)
    spec = CacheSpec(
        LAYERS,
        KV_HEADS,
        HEAD_DIM,
        num_query_heads=KV_HEADS * GROUP,
        codecs=StreamCodecs(codec),
        page_rows=8,
        tokens_per_frame=FRAME_TOKENS,
        frames_per_block=NUM_FRAMES,
        **settings,
    )
    return on_meta(PagedKVCache(spec, "1MiB", book=CodecBook(calibrated.page, KV_HEADS, own={"klt2": calibrated})))


def qkv(num_tokens: int = TOKENS) -> list[Tensor]:
    heads = (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)
    return [torch.empty(num_tokens, count, HEAD_DIM, dtype=torch.bfloat16, device=META) for count in heads]


def commit(cache: PagedKVCache, ranges: list[Any], num_tokens: int, rope: Any) -> None:
    with cache.commit(ranges) as step:
        for layer in range(LAYERS):
            step.attend(layer, *qkv(num_tokens), rope)


def forward(step: Any, inputs: list[Tensor], *more: Any, **options: Any) -> list[Tensor]:
    return [step.attend(layer, *inputs, *more, **options) for layer in range(LAYERS)]


@pytest.mark.usefixtures("_without_kernels")
@pytest.mark.parametrize(
    ("codec", "keys_arrive"),
    [
        ("int2", "before_rotary"),
        ("int2", "rotated"),
        ("int4-post", "rotated"),
        ("bf16", "before_rotary"),
        ("klt2", "before_rotary"),
    ],
)
def test_after_its_first_forward_a_step_keeps_nothing_that_is_made(codec: str, keys_arrive: str) -> None:
    cache, rope = make_cache(codec, keys_arrive=keys_arrive), TableRope("interleaved", HEAD_DIM)
    stream = cache.open(Window(1, 2), TOKENS)
    for _ in range(2):
        commit(cache, [stream], TOKENS, rope)
    require_capturable(cache, [stream], qkv(), rope)


@pytest.mark.usefixtures("_without_kernels")
def test_with_ranges_of_all_kinds_a_text_and_a_projection() -> None:
    cache, rope = make_cache("int2"), TableRope("interleaved", HEAD_DIM)
    streams, tag = [cache.open(Window(1, 2, positions="window"), TOKENS) for _ in range(2)], (0, NUM_FRAMES)
    for _ in range(3):
        commit(cache, [QueryRange(stream, tag=tag) for stream in streams], 2 * TOKENS, rope)
    text = torch.empty(5, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=META)
    ranges = [QueryRange(streams[0], tag=tag), QueryRange(streams[1], tag=tag, sees_ranges=(0,))]
    options = {
        "projections": [SeededProjection(FRAME_TOKENS, "interleaved")],
        "context": [(text, text), None],
    }
    require_capturable(cache, ranges, qkv(2 * TOKENS), rope, **options)


def require_capturable(cache: PagedKVCache, ranges: list[Any], inputs: list[Tensor], rope: Any, **options: Any) -> None:
    """A warm-up, the capture, and a forward after it: nothing is kept, freed or copied from the host."""
    capture, copies = Capture(), Copies()
    with cache.denoise(ranges) as step:
        forward(step, inputs, rope, **options)
        with copies.noted(), capture.recorded():
            out = forward(step, inputs, rope, **options)
        assert capture.num_made and not copies.by_place
        del out
        assert capture.kept() == []
        forward(step, inputs, rope, **options)
        assert capture.freed() == []


@pytest.mark.usefixtures("_without_kernels")
def test_what_a_captured_step_uses_outlives_other_steps() -> None:
    """Larger chunks, and more steps and ropes than any table is kept for, while the captured step is open."""
    cache, rope = make_cache("int2"), TableRope("interleaved", HEAD_DIM)
    captured, others = cache.open(Window(1, 2), TOKENS), cache.open(Window(1, 2), 4 * TOKENS)
    commit(cache, [captured], TOKENS, rope)
    capture, inputs = Capture(), qkv()
    with cache.denoise([captured]) as step:
        forward(step, inputs, rope)
        with capture.recorded():
            forward(step, inputs, rope)
        for _ in range(MORE_STEPS):
            commit(cache, [others], 4 * TOKENS, rope)
            with cache.denoise([others]) as other:
                forward(other, qkv(4 * TOKENS), rope)
        assert capture.freed() == []


# ---------------------------------------------------------------------- the rules see what breaks them


class Host:
    """Something that uses memory of its own."""

    def __init__(self) -> None:
        self.buffer = torch.empty(3, device=META)
        self.kept: list[Tensor] = []

    def keeps_a_new_one(self) -> Tensor:
        self.kept.append(torch.empty(3, device=META))
        return self.buffer + self.kept[-1]

    def keeps_a_view(self) -> Tensor:
        self.kept.append((self.buffer * 2)[1:].view(-1))
        return self.buffer + 1

    def regrows(self) -> Tensor:
        out = self.buffer + 1
        self.buffer = torch.empty(5, device=META)
        return out

    def keeps_nothing(self) -> Tensor:
        out = self.buffer.mul_(2) + torch.empty(3, device=META)
        self.buffer.copy_(out)
        return out

    def keeps_its_own(self) -> Tensor:
        self.kept.append(self.buffer[1:])
        return self.buffer.clone()


@pytest.mark.parametrize(
    ("call", "kept", "freed"),
    [
        (Host.keeps_a_new_one, True, False),
        (Host.keeps_a_view, True, False),
        (Host.regrows, True, True),
        (Host.keeps_nothing, False, False),
        (Host.keeps_its_own, False, False),
    ],
)
def test_the_rules_see_what_is_kept_and_freed(call: Callable[[Host], Tensor], kept: bool, freed: bool) -> None:
    host, capture = Host(), Capture()
    with capture.recorded():
        out = call(host)
    assert capture.kept()  # the result, which is the caller's
    del out
    assert bool(capture.kept()) == kept and bool(capture.freed()) == freed
    del host
    assert capture.freed() and not capture.kept()


class Library:
    """Does not pass through PyTorch's dispatcher."""

    def __call__(self, q: Tensor, *, keys: Tensor) -> None:
        pass


def test_what_a_kernel_is_given_counts_as_used(monkeypatch: pytest.MonkeyPatch) -> None:
    note_launches(monkeypatch, Library)
    q, keys, capture = torch.empty(3, device=META), torch.empty(4, device=META), Capture()
    with capture.recorded():
        Library()(q, keys=keys)
    assert capture.freed() == [] and capture.kept() == []
    del keys
    assert capture.freed() == ["outside of pagedvid"]


def test_a_value_cannot_be_read() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        torch.empty(1, device=META).item()
