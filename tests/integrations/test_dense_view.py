"""Dense views: a host's own attention over them gives what `Step.attend` gives, correction included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid import CacheSpec, PagedKVCache, QueryRange, StreamCodecs, Window
from pagedvid.errors import ConfigError, NonFiniteError, ShapeError, StateError
from pagedvid.integrations.dense_view import DenseView, DenseWindow
from tests.attention.partials import merged
from tests.attention.reference import TableRope

NUM_LAYERS, NUM_KV_HEADS, GROUP, HEAD_DIM = 2, 2, 3, 16
WINDOW = Window(sink_chunks=1, recent_chunks=2)
ROPES = {None: None, "half": TableRope("half", HEAD_DIM), "interleaved": TableRope("interleaved", HEAD_DIM)}
LENGTHS = (130, 17, 130, 64, 130)


def make_cache(codecs: StreamCodecs | str = "int2", correction: str = "formula", **spec) -> PagedKVCache:
    codecs = StreamCodecs(codecs) if isinstance(codecs, str) else codecs
    heads = {"num_kv_heads": NUM_KV_HEADS, "num_query_heads": NUM_KV_HEADS * GROUP, "head_dim": HEAD_DIM}
    return PagedKVCache(
        CacheSpec(NUM_LAYERS, codecs=codecs, correction=correction, keys_arrive="rotated", **heads, **spec), "4MiB"
    )


def draw(num_tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with scores well apart, so that a missing correction shows."""
    generator = torch.Generator().manual_seed(seed)
    q = 2.5 * torch.randn(num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM, generator=generator)
    k, v = torch.randn(2, num_tokens, NUM_KV_HEADS, HEAD_DIM, generator=generator)
    return q, k, v


def attend_with_bias(q: Tensor, view: DenseView) -> Tensor:
    """A host's attention that takes an additive bias: [T, Hq, D]."""
    k, v = (x.repeat_interleave(GROUP, dim=1).transpose(0, 1) for x in (view.k, view.v))
    out = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=view.key_bias(q))
    return out.transpose(0, 1)


def attend_by_span(q: Tensor, view: DenseView) -> Tensor:
    """A host whose attention gives a log-sum-exp: one call per span, shifted, merged."""
    partials = []
    for span, shift in zip(view.spans, view.lse_shift(q), strict=True):
        k, v = (x[span].repeat_interleave(GROUP, dim=1).transpose(0, 1) for x in (view.k, view.v))
        scores = q.transpose(0, 1) @ k.mT * view.scale
        partials.append((scores.softmax(-1) @ v, scores.logsumexp(-1) - shift))
    return merged(partials)[0].to(q.dtype).transpose(0, 1)


@pytest.mark.parametrize("host_attention", [attend_with_bias, attend_by_span])
@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
@pytest.mark.parametrize("correction", ["off", "formula", "measured"])
@pytest.mark.parametrize(
    "codecs", [StreamCodecs("int2"), StreamCodecs("int4", sink="int8", newest="bf16")], ids=["int2", "by role"]
)
def test_a_hosts_attention_gives_what_attend_gives(codecs, correction, layout, host_attention):
    """Same keys and values into both: two denoise forwards and a final one per chunk, the window slides twice."""
    by_step, by_view = (make_cache(codecs, correction) for _ in range(2))
    rope = ROPES[layout]
    stream, other = (cache.open(WINDOW, max(LENGTHS)) for cache in (by_step, by_view))
    window = DenseWindow(by_view, other, rope=rope, dtype=torch.float32)
    start = 0
    for chunk, num_tokens in enumerate(LENGTHS):
        for forward in range(3):
            with by_step.step([QueryRange(stream, num_tokens=num_tokens, commit=forward == 2)]) as step:
                for layer in range(NUM_LAYERS):
                    q, k, v = draw(num_tokens, 100 * chunk + 10 * forward + layer)
                    expected = step.attend(layer, q, k, v, rope)
                    view = window.update_and_get(layer, k, v, start, q)
                    torch.testing.assert_close(host_attention(q, view), expected, rtol=1e-4, atol=2e-4)
        start += num_tokens
    window.commit()
    assert [chunk.codecs for chunk in other.chunks()] == [chunk.codecs for chunk in stream.chunks()]
    for ours, theirs in zip(other.chunks(), stream.chunks(), strict=True):
        assert torch.equal(by_view.pool.read(ours.table.ids), by_step.pool.read(theirs.table.ids))
    by_view.check()


def write(window: DenseWindow, chunk_start: int, num_tokens: int, seed: int) -> DenseView:
    """One forward of all layers; the last layer's view."""
    for layer in range(NUM_LAYERS):
        _, k, v = draw(num_tokens, 10 * seed + layer)
        view = window.update_and_get(layer, k, v, chunk_start)
    return view


@pytest.mark.parametrize("rope", [None, ROPES["interleaved"]], ids=["no rope", "rope"])
def test_a_rolling_buffer_shows_the_same(rope):
    """What SGLang's and LightX2V's own caches do: [sinks | newest], rewritten in place until the chunk's end moves."""
    cache = make_cache("fp32", "off")
    window = DenseWindow(cache, cache.open(WINDOW, 30), rope=rope, dtype=torch.float32)
    k_all, v_all = torch.empty(2, 0, NUM_KV_HEADS, HEAD_DIM)
    for chunk in range(7):
        for forward in range(2):
            view = write(window, 30 * chunk, 30, seed=10 * chunk + forward)
            _, k, v = draw(30, 10 * (10 * chunk + forward) + NUM_LAYERS - 1)
            expected = [torch.cat([x[: 30 * chunk], new]) for x, new in ((k_all, k), (v_all, v))]
            kept = [*range(30), *range(max(30, 30 * (chunk - 2)), 30 * (chunk + 1))] if chunk else range(30)
            torch.testing.assert_close(view.k, expected[0][list(kept)], rtol=0, atol=1e-5)
            torch.testing.assert_close(view.v, expected[1][list(kept)], rtol=0, atol=0)
        k_all, v_all = expected
    assert len(view.k) == 120 and [span.stop for span in view.spans] == [30, 60, 90, 120]
    assert view.span_of_key.tolist() == [0] * 30 + [1] * 30 + [2] * 30 + [3] * 30


def test_keys_that_arrive_before_rotary_come_back_before_it():
    """The host rotates the whole view, by positions that close the gap behind the sink."""
    spec = CacheSpec(NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM, codecs=StreamCodecs("fp32"), correction="off")
    cache = PagedKVCache(spec, "4MiB")
    stream = cache.open(Window(1, 1, positions="window"), 20)
    window = DenseWindow(cache, stream, rope=ROPES["interleaved"], dtype=torch.float32)
    for chunk in range(4):
        view = write(window, 20 * chunk, 20, seed=chunk)
    keys = [draw(20, 10 * chunk + NUM_LAYERS - 1)[1] for chunk in (0, 2, 3)]
    torch.testing.assert_close(view.k, torch.cat(keys), rtol=0, atol=1e-6)
    assert window.position == 40


def test_one_buffer_for_all_layers_and_forwards():
    cache = make_cache()
    window = DenseWindow(cache, cache.open(WINDOW, 64))
    for chunk in range(3):
        write(window, 64 * chunk, 64, seed=chunk)
    write(window, 192, 64, seed=3)  # as long as it will ever be
    places = set()
    for chunk in range(4, 8):
        for layer in range(NUM_LAYERS):
            view = window.update_and_get(layer, *draw(64, layer)[1:], 64 * chunk)
            places.add((view.k.data_ptr(), view.v.data_ptr()))
            assert view.k.dtype == torch.bfloat16 and view.k.shape == (256, NUM_KV_HEADS, HEAD_DIM)
    assert len(places) == 1
    one_layer, current = 2 * 2 * 256 * NUM_KV_HEADS * HEAD_DIM, NUM_LAYERS * 2 * 4 * 64 * NUM_KV_HEADS * HEAD_DIM
    assert window.workspace_bytes == one_layer + current


def test_the_correction_points_the_right_way():
    """Rounded keys take mass from the current chunk; without the bias its share is too small, with it nearly right."""
    shares = {}
    for codec in ("fp32", "int2"):
        cache = make_cache(codec)
        window = DenseWindow(cache, cache.open(WINDOW, 128), dtype=torch.float32)
        for chunk in range(3):
            write(window, 128 * chunk, 128, seed=chunk)
        view, q = write(window, 384, 128, seed=3), draw(128, 7)[0]
        scores = torch.einsum("thd,nhd->htn", q, view.k.repeat_interleave(GROUP, dim=1)) * view.scale
        for name, bias in (("plain", 0.0), ("biased", view.key_bias(q))):
            shares[codec, name] = float((scores + bias).softmax(-1)[..., view.spans[-1]].sum(-1).mean())
    assert shares["fp32", "biased"] == shares["fp32", "plain"]
    lost, left = (shares["fp32", "plain"] - shares["int2", name] for name in ("plain", "biased"))
    assert lost > 0.02 and abs(left) < 0.3 * lost


def test_starts_that_do_not_follow_are_refused():
    cache = make_cache()
    stream = cache.open(WINDOW, 64)
    window = DenseWindow(cache, stream)
    with pytest.raises(StateError, match=r"chunk_start is 64; allowed is 0$"):
        write(window, 64, 64, seed=0)
    write(window, 0, 64, seed=0)
    with pytest.raises(StateError, match="chunk_start is 32; allowed is 0 or 64, which commits the current chunk"):
        write(window, 32, 64, seed=0)
    with pytest.raises(ShapeError, match="the chunk at 0 has 64 tokens; it was overwritten with 63"):
        write(window, 0, 63, seed=0)
    with pytest.raises(ShapeError, match="layer 2 does not exist"):
        window.update_and_get(2, *draw(64, 0)[1:], 0)
    with pytest.raises(ShapeError, match=r"v has shape \(63, 2, 16\)"):
        window.update_and_get(0, draw(64, 0)[1], draw(63, 0)[2], 0)
    assert stream.num_committed == 0
    window.commit()
    assert stream.num_committed == 1
    with pytest.raises(StateError, match=r"chunk 1 cannot be committed before layers \[0, 1\]"):
        window.commit()
    cache.release(stream)
    with pytest.raises(StateError, match="was released"):
        write(window, 64, 64, seed=1)


def test_a_commit_that_fails_can_be_mended():
    cache = make_cache()
    stream = cache.open(WINDOW, 64)
    window = DenseWindow(cache, stream)
    write(window, 0, 64, seed=0)
    _, k, v = draw(64, 0)
    window.update_and_get(1, torch.full_like(k, torch.nan), v, 0)
    with pytest.raises(NonFiniteError, match="keys of layer 1"):
        write(window, 64, 64, seed=1)
    assert stream.num_committed == 0 and cache.stats().pages_used == 0
    window.update_and_get(1, k, v, 0)
    write(window, 64, 64, seed=1)
    assert stream.num_committed == 1
    cache.check()


def test_measuring_needs_queries():
    cache = make_cache(correction="measured")
    window = DenseWindow(cache, cache.open(WINDOW, 64))
    with pytest.raises(ConfigError, match='pass them to update_and_get, or open the cache with correction "formula"'):
        write(window, 0, 64, seed=0)
    unquantized = DenseWindow(cache, cache.open(WINDOW, 64, codecs=StreamCodecs("bf16")))
    write(unquantized, 0, 64, seed=0)
