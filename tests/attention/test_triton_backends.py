"""The kernels behind `step.attend`, run by Triton's interpreter, against the slow reference.

With queries in float32 they differ from it by the correction alone: they decide block by block which channels are hot.
"""

from __future__ import annotations

import pytest
import torch

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.book import CodecBook
from pagedvid.errors import NonFiniteError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import TableRope, as_arriving, expected_attention, random_qkv
from tests.attention.scenes import commit_all, make_cache
from tests.attention.triton_scenes import small_cache, with_kernels
from tests.codecs.klt import scenes as klt_scenes
from tests.codecs.klt.kernels.scenes import klt_codec

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter; test_gpu.py runs on a GPU")
ROPE = TableRope("half", 32)
EXACT = 1e-5
BY_PAGE = 5e-2
"""At two bits, the step sizes of a chunk's full page and of the few tokens after it differ much."""


def check_step(cache: PagedKVCache, ranges, tolerance: float, rope=ROPE, dtype=torch.float32) -> None:
    with cache.step(ranges) as step:
        for layer in range(cache.spec.num_layers):
            q, k, v = random_qkv(cache, step.plan.num_tokens, 70 + layer, dtype)
            out = step.attend(layer, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)
            assert out.dtype == dtype
            expected = expected_attention(cache, step, layer, q, k, v, rope)
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("codec", "correction"),
    [("fp32", "measured"), ("int4/int2", "off"), ("int2", "measured"), ("int8", "formula"), ("int4", "variance")],
)
def test_codecs_and_corrections(codec: str, correction: str) -> None:
    cache = small_cache(codec, correction=correction)
    stream = cache.open(Window(1, 2), 130)
    commit_all(cache, stream, [40 if codec == "fp32" else 130, 33], 1, ROPE)  # longer than a page of the codec
    is_exact = correction == "off" or codec == "fp32"
    check_step(cache, [QueryRange(stream, num_tokens=9)], EXACT if is_exact else BY_PAGE)


def test_streams_of_all_lengths_with_mixed_codecs() -> None:
    """Sinks in int8, the newest chunk in bf16, grouped heads; one stream without history, one in a commit pass."""
    cache = small_cache(StreamCodecs("int2", sink="int8", newest="bf16"), layers=2, group=3)
    long = cache.open(Window(1, 2, positions="window"), 20)
    commit_all(cache, long, [20, 17, 19, 20], 1, ROPE)
    fresh = cache.open(Window(1, 1), 20)
    ranges = [QueryRange(long, num_tokens=5), QueryRange(fresh, num_tokens=1)]
    check_step(cache, ranges, BY_PAGE)
    check_step(cache, [QueryRange(cache.fork(long), "cond", 9, commit=True)], BY_PAGE)


def test_keys_stored_after_rotary_embedding_change_position() -> None:
    cache = small_cache("int4-post", correction="off")
    stream = cache.open(Window(0, 1, positions="window"), 40)
    commit_all(cache, stream, [40, 33], 1, ROPE)
    check_step(cache, [QueryRange(stream, num_tokens=9)], EXACT)


@pytest.mark.parametrize("codec", ["token4-g32", "hadamard4-g32", "int2-s8"])
def test_codecs_with_step_sizes_per_token_and_short_step_sizes(codec: str) -> None:
    cache = small_cache(codec, correction="formula")
    stream = cache.open(Window(1, 2), 40)
    commit_all(cache, stream, [40, 33], 1, ROPE)
    check_step(cache, [QueryRange(stream, num_tokens=9)], BY_PAGE)


def calibrated_cache(correction: str, head_dim: int = 32) -> PagedKVCache:
    """On the CPU backend, with made-up tables; kernels do not take those for head_dim 16."""
    codec = klt_scenes.codec("klt2") if head_dim == 16 else klt_codec("klt2", head_dim)
    page = codec.page
    spec = CacheSpec(
        1,
        2,
        head_dim,
        codecs=StreamCodecs("klt2"),
        page_rows=page.rows,
        tokens_per_frame=page.tokens_per_frame,
        frames_per_block=page.frames_per_block,
        correction=correction,
    )
    return PagedKVCache(spec, "1MiB", book=CodecBook(page, 2, own={"klt2": codec}))


@pytest.mark.parametrize("correction", ["off", "variance", "measured"])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_calibrated_codecs_are_read_as_on_the_cpu(correction: str, head_dim: int) -> None:
    cache, rope = calibrated_cache(correction, head_dim), TableRope("half", head_dim)
    stream = cache.open(Window(1, 2), 40)
    commit_all(cache, stream, [40, 33], 1, rope)
    outs = []
    for backend in (cache.backend, with_kernels(cache).backend):
        cache.backend = backend
        with cache.denoise([QueryRange(stream, num_tokens=9)]) as step:
            outs.append(step.attend(0, *random_qkv(cache, 9, 5), rope))
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head_dim", [16, 32])
def test_calibrated_codecs_are_written_as_on_the_cpu(head_dim: int) -> None:
    """Kernels may round a value near the edge between two levels to the other one. Blocks are full: in those that
    repeat a frame, some coefficients are nothing but rounding errors, whose sign is arbitrary."""
    stored = []
    for make in (lambda cache: cache, lambda cache: with_kernels(cache)):
        cache = make(calibrated_cache("variance", head_dim))
        stream, rope = cache.open(Window(1, 2), 40), TableRope("interleaved", head_dim)
        commit_all(cache, stream, [40 if head_dim == 16 else 30], 1, rope)
        (chunk,) = stream.history("cond").chunks.values()
        stored.append((*cache.backend.store.read(chunk, 0, rope), chunk.variance.float()))
    for kernel, codec in zip(stored[1], stored[0], strict=True):
        assert float((kernel - codec).norm()) <= 0.02 * float(codec.norm())


@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
@pytest.mark.parametrize("layout", [None, "interleaved"])
def test_rotary_conventions(keys_arrive: str, layout: str | None) -> None:
    rope = None if layout is None else TableRope(layout, 32)
    cache = small_cache("int4", keys_arrive=keys_arrive, correction="off")
    stream = cache.open(Window(1, 2), 40)
    commit_all(cache, stream, [40], 1, rope)
    check_step(cache, [QueryRange(stream, num_tokens=9)], EXACT, rope)


def test_ranges_in_flight_see_each_other() -> None:
    cache = small_cache("int4", correction="off")
    stream = cache.open(Window(1, 2), 20)
    commit_all(cache, stream, [20], 1, ROPE)
    ranges = [QueryRange(stream, num_tokens=9), QueryRange(stream, num_tokens=9, sees_ranges=(0,), visible=())]
    check_step(cache, ranges, EXACT)


@pytest.mark.parametrize("codec", ["int2", "token4-g32/hadamard4-g32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_hosts_with_16_bit_dtypes(dtype: torch.dtype, codec: str) -> None:
    cache = small_cache(codec)
    stream = cache.open(Window(1, 2), 70)
    commit_all(cache, stream, [70], 1, ROPE)
    check_step(cache, [QueryRange(stream, num_tokens=9)], 4e-2, dtype=dtype)


def test_a_text_besides_the_pages() -> None:
    """Context for one range and none for the other, as on the CPU."""
    outs = []
    for make in (lambda cache: cache, lambda cache: with_kernels(cache)):
        cache = make(make_cache("int4", head_dim=32, correction="off"))
        stream = cache.open(Window(1, 2), 20)
        commit_all(cache, stream, [20], 1, ROPE)
        with cache.denoise([QueryRange(stream, num_tokens=9), QueryRange(stream, num_tokens=5)]) as step:
            q, k, v = random_qkv(cache, 14, 5)
            text = tuple(x[:6] for x in random_qkv(cache, 6, 6)[1:])
            outs.append(step.attend(0, q, k, v, ROPE, context=[text, None]))
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-5)


def test_a_commit_stores_the_bytes_of_the_cpu_backend() -> None:
    records = []
    for make in (lambda cache: cache, lambda cache: with_kernels(cache)):
        cache = make(make_cache(StreamCodecs("int2", newest="int8"), head_dim=32))
        stream = cache.open(Window(1, 2), 130)
        commit_all(cache, stream, [130, 1], 1, ROPE)
        chunks = stream.history("cond").chunks.values()
        records.append([cache.pool.records[torch.from_numpy(chunk.table.ids).long()] for chunk in chunks])
        alphas = [chunk.alpha for chunk in chunks]
    assert all(torch.equal(a, b) for a, b in zip(*records, strict=True))
    assert all(alpha is not None and torch.isfinite(alpha).all() for alpha in alphas)


@pytest.mark.parametrize("codec", ["int4", "bf16", "token4-g32", "int4-post", "klt2"])
@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
def test_keys_and_values_of_any_strides_are_stored(codec: str, keys_arrive: str) -> None:
    stored = []
    for strided in (False, True):
        calibrated = klt_codec("klt2", rows=36)
        spec = CacheSpec(
            1, 2, 32, codecs=StreamCodecs(codec), keys_arrive=keys_arrive, page_rows=36, tokens_per_frame=10,
            frames_per_block=3, correction="off",
        )  # fmt: skip
        cache = PagedKVCache(spec, "1MiB", book=CodecBook(calibrated.page, 2, own={"klt2": calibrated}))
        cache = with_kernels(cache)
        stream = cache.open(Window(1, 2), 30)
        q, k, v = random_qkv(cache, 30, 5)
        if strided:
            k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
            assert k.stride(-1) != 1
        with cache.commit([stream]) as step:
            step.attend(0, q, k, v, TableRope("interleaved", 32))
        (chunk,) = stream.history("cond").chunks.values()
        stored.append(cache.pool.records[torch.from_numpy(chunk.table.ids).long()])
    assert torch.equal(*stored)


@pytest.mark.parametrize("codec", ["int8-post", "token8-g32"])
def test_keys_are_rotated_in_float32_before_they_are_stored(codec: str) -> None:
    """The bytes of the CPU backend, which a rotation in bfloat16 would not give."""
    stored = []
    for make in (lambda cache: cache, lambda cache: with_kernels(cache)):
        cache = make(make_cache(codec, head_dim=32, correction="off"))
        stream = cache.open(Window(1, 2), 30)
        with cache.commit([stream]) as step:
            for layer in range(cache.spec.num_layers):
                step.attend(layer, *random_qkv(cache, 30, layer, torch.bfloat16), ROPE)
        (chunk,) = stream.history("cond").chunks.values()
        stored.append(cache.pool.records[torch.from_numpy(chunk.table.ids).long()])
    assert torch.equal(*stored)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_keys_that_cannot_be_stored_roll_the_commit_back() -> None:
    cache = small_cache("int2")
    stream = cache.open(Window(1, 2), 20)
    free = cache.pool.num_free_pages
    with pytest.raises(NonFiniteError, match="keys of layer 0, KV head 1, chunk 0"), cache.commit([stream]) as step:
        for layer in range(cache.spec.num_layers):
            q, k, v = random_qkv(cache, 20, layer)
            k[3, 1, 5] = torch.nan if layer == 0 else 0.0
            step.attend(layer, q, k, v, ROPE)
    assert cache.pool.num_free_pages == free
    cache.check()


def test_tables_are_made_once_for_the_denoise_steps_of_a_chunk() -> None:
    cache = small_cache("int2")
    stream = cache.open(Window(1, 2), 20)
    commit_all(cache, stream, [20], 1, ROPE)
    seen = []
    for _ in range(2):
        with cache.denoise([stream]) as step:
            q, k, v = random_qkv(cache, 20, 1)
            step.attend(0, q, k, v, ROPE)
            seen.append(step._rotary[2])
    assert seen[0] is seen[1]
    commit_all(cache, stream, [20], 2, ROPE)
    with cache.denoise([stream]) as step:
        step.attend(0, *random_qkv(cache, 20, 1), ROPE)
        assert step._rotary[2] is not seen[0]
