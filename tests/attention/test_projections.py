"""`step.attend` with projections: one stored copy of keys and values, seen in two views, against slow references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.attention import page_runs
from pagedvid.attention.measure import MEASURED_QUERIES
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import ShapeError, StateError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.projective_reference import SeededProjection, expected_projection, mapped, model_order
from tests.attention.reference import (
    balanced_alpha,
    chunk_bias,
    expected_attention,
    pairs_together,
    random_qkv,
    read_chunk,
    rotate,
)
from tests.attention.scenes import HEAD_DIM, ROPES, TOLERANCE, make_cache

SIZE = 10
"""Tokens per frame: several frames per page, and pages that end inside a frame."""


def frames(stream, seed: int, num_frames: int, **asked) -> QueryRange:
    return QueryRange(stream, num_tokens=num_frames * SIZE, tag=(seed, num_frames), **asked)


def inputs(cache: PagedKVCache, num_tokens: int, seed: int, dtype=torch.float32) -> tuple[Tensor, ...]:
    return tuple(0.5 * x for x in random_qkv(cache, num_tokens, seed, dtype))


def texts(cache: PagedKVCache, lengths: list[int], seed: int, dtype=torch.float32):
    """Context keys and values of each range; length 0: none."""
    pairs = [inputs(cache, n, seed + i, dtype)[1:] for i, n in enumerate(lengths)]
    return [pair if len(pair[0]) else None for pair in pairs]


def run(cache, ranges, seed: int, layout: str | None, dtype=torch.float32, lengths: list[int] | None = None) -> Tensor:
    """All layers of a step, both views checked; the outputs [layers, 2, T, Hq, D]."""
    rope, projection = ROPES[layout], SeededProjection(SIZE, layout or "half")
    outs = []
    with cache.step(ranges) as step:
        for layer in range(cache.spec.num_layers):
            q, k, v = inputs(cache, step.plan.num_tokens, 10 * seed + layer, dtype)
            context = texts(cache, lengths, 1000 * seed + layer, dtype) if lengths else ()
            both = step.attend(layer, q, k, v, rope, projections=[projection], context=context)
            expected = expected_projection(cache, step, layer, q, k, v, projection, context)
            atol = TOLERANCE[dtype] * float(expected.abs().max())
            torch.testing.assert_close(both[1].double(), expected, rtol=0, atol=atol)
            if not lengths:
                assert torch.equal(both[0], step_alone(cache, step, layer, q, k, v, rope))
            outs.append(both)
    return torch.stack(outs)


def step_alone(cache, step, layer, q, k, v, rope) -> Tensor:
    """The rotary view of the same call without projections, read outside the commit pass."""
    _, prepared = step._rotary_view(rope, q.dtype, ())
    return prepared.attend(layer, q, k, v)


def history(cache, lengths: list[int], seed: int, layout: str | None):
    """A stream that has committed chunks of these numbers of frames."""
    stream = cache.open(Window(1, 2, positions="window"), 120)
    for i, num_frames in enumerate(lengths):
        run(cache, [frames(stream, 100 * seed + i, num_frames, commit=True)], 50 * seed + i, layout)
    return stream


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int2"])
@pytest.mark.parametrize("correction", ["off", "formula", "measured"])
@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
def test_every_codec_correction_and_layout(codec, correction, layout):
    cache = make_cache(codec, correction=correction)
    stream = history(cache, [12, 3, 7], 1, layout)
    run(cache, [frames(stream, 7, 4)], 90, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("scratch", [1, "8MiB"])
def test_several_streams_in_flight_with_context(dtype, group, scratch):
    """Histories of different lengths, ranges that see each other, a commit among them, texts of different lengths or
    none."""
    cache = make_cache(StreamCodecs("int2", newest="bf16"), group=group, scratch=scratch)
    a, b, c = (
        history(cache, [12, 3], 1, "interleaved"),
        history(cache, [12], 2, "interleaved"),
        history(cache, [], 3, None),
    )
    ranges = [
        frames(a, 11, 4),
        frames(b, 12, 4, commit=True),
        frames(b, 13, 2, sees_ranges=(1,)),
        frames(c, 14, 4, visible=()),
        frames(a, 15, 4, visible=(0,)),
    ]
    run(cache, ranges, 90, "interleaved", dtype, lengths=[5, 17, 5, 0, 5])


@pytest.mark.parametrize("codecs", [StreamCodecs("int2", sink="bf16"), StreamCodecs("int2", newest="bf16")], ids=str)
def test_a_scratch_that_holds_two_chunks_of_which_one_is_corrected(codecs):
    """They are read in one group, frame by frame."""
    chunk_bytes = 2 * 4 * HEAD_DIM * 2 * SIZE
    cache = make_cache(codecs, scratch=2 * chunk_bytes)
    stream = history(cache, [2, 2, 2], 1, "half")
    run(cache, [frames(stream, 7, 7)], 90, "half")


@pytest.mark.parametrize("correction", ["formula", "measured"])
def test_pages_as_the_unit_of_correction_are_for_the_rotary_view(correction, monkeypatch):
    """Frames still have a b of their own here."""
    monkeypatch.setattr(page_runs, "TOLERANCE", 0.0)
    cache = make_cache("int2", page_rows=8, correction=correction, correction_unit="page")
    stream = history(cache, [12, 3, 7], 1, "half")
    assert all(len(chunk.runs[layer]) > 1 for chunk in stream.chunks() for layer in range(2))
    run(cache, [frames(stream, 7, 4)], 90, "half")


def test_context_in_the_rotary_view_is_not_rotated():
    cache, rope = make_cache("fp32"), ROPES["interleaved"]
    stream = history(cache, [5], 1, "interleaved")
    with cache.denoise([frames(stream, 1, 4)]) as step:
        q, k, v = inputs(cache, 40, 5)
        ((text_k, text_v),) = texts(cache, [7], 9)
        out = step.attend(0, q, k, v, rope, context=[(text_k, text_v)])
        (read,) = step.plan.ranges[0].reads
        position = step.plan.ranges[0].first_token
    stored_k, stored_v, _ = read_chunk(cache, read.chunk, 0)
    for head in range(2):
        memory = rotate(stored_k[head].unsqueeze(1), rope, read.first_token, layout="half")
        own = pairs_together(rotate(k[:, head : head + 1], rope, position), rope)
        keys = torch.cat([memory, own, pairs_together(text_k[:, head : head + 1].double(), rope)])[:, 0]
        values = torch.cat([stored_v[head], v[:, head].double(), text_v[:, head].double()])
        rotated = pairs_together(rotate(q[:, head : head + 1], rope, position), rope)[:, 0]
        expected = torch.softmax(rotated @ keys.T / HEAD_DIM**0.5, dim=1) @ values
        torch.testing.assert_close(out[:, head].double(), expected, rtol=0, atol=1e-5)


def test_what_is_stored_does_not_depend_on_the_views():
    """Plain keys and values, once; only the measured factor depends on the second view's queries."""
    written = []
    for projections in ([], [SeededProjection(SIZE, "half")]):
        cache = make_cache("int2")
        stream = cache.open(Window(0, 1), 120)
        with cache.commit([frames(stream, 1, 12)]) as step:
            for layer in range(2):
                step.attend(layer, *inputs(cache, 120, layer), ROPES["half"], projections=projections)
        (chunk,) = stream.chunks()
        written.append((cache.pool.read(chunk.table.ids), chunk.num_pages, chunk.alpha))
    assert written[0][1] == written[1][1]
    assert all(torch.equal(x, y) for x, y in zip(written[0][0], written[1][0], strict=True))
    assert not torch.equal(written[0][2], written[1][2])


def test_a_layer_is_stored_once_per_commit_pass():
    cache = make_cache("int2")
    stream = cache.open(Window(0, 1), 120)
    with pytest.raises(StateError, match="attended twice"), cache.commit([frames(stream, 1, 12)]) as step:
        for _ in range(2):
            step.attend(0, *inputs(cache, 120, 0), projections=[SeededProjection(SIZE)])


# ---------------------------------------------------------------------- the correction


def test_frame_by_frame_is_close_to_the_correction_of_every_key():
    """25 frames on two pages, one of them on both. Relative to the whole effect of the correction, the mean over a
    frame's keys is 1 % off; the bias of the query as it is, not pulled back to the key's frame, is 90 % off."""
    cache = make_cache("int2", correction="formula")
    stream, projection = cache.open(Window(0, 2), 250), SeededProjection(SIZE)
    for seed in (1, 2):
        with cache.commit([frames(stream, seed, 25, visible=())]) as step:
            for layer in range(2):
                step.attend(layer, *inputs(cache, 250, seed), projections=[projection])
    with cache.denoise([frames(stream, 3, 4)]) as step:
        q, k, v = inputs(cache, 40, 5)
        q = 3 * q
        out = step.attend(0, q, k, v, projections=[projection])[1].double()
        exact, unpulled, uncorrected = (
            expected_projection(cache, step, 0, q, k, v, projection, kind=kind)
            for kind in ("per key", "query as it is", "uncorrected")
        )
    effect = float((exact - uncorrected).norm())
    assert effect > 0.03 * float(exact.norm())
    assert float((out - exact).norm()) < 0.02 * effect
    assert float((unpulled - exact).norm()) > 0.5 * effect


@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
def test_alpha_is_fitted_to_the_queries_of_both_views(layout):
    cache, rope, projection = make_cache(group=3), ROPES[layout], SeededProjection(SIZE, layout or "half")
    stream = history(cache, [12], 1, layout)
    with cache.commit([frames(stream, 5, 9)]) as step:
        q, k, v = inputs(cache, 90, 7)
        k[::2] = k[:1].clone()  # a background that rounds alike, so that the formula is wrong
        for layer in range(2):
            step.attend(layer, q, k, v, rope, projections=[projection])
        position = step.plan.ranges[0].first_token
    chunk = list(stream.chunks())[-1]
    keys, _, step_sizes = read_chunk(cache, chunk, 0)
    num_queries = min(90, MEASURED_QUERIES)
    sample = torch.tensor([i * 89 // max(1, num_queries - 1) for i in range(num_queries)])
    own = torch.nn.functional.one_hot(sample, 90).bool()  # the token that a query was made with is left out
    forward, inverse = projection.maps((5, 9))
    q_p = mapped(q, forward.mT, SIZE)[sample]
    here, ahead = (pairs_together(rotate(q, rope, p), rope)[sample] for p in (position, position + 90))
    for head in range(2):
        heads = slice(3 * head, 3 * head + 3)
        both = pairs_together(k[:, head : head + 1].double(), rope), keys[head].unsqueeze(1)
        here_GTD, ahead_GTD = (x[:, heads].transpose(0, 1) for x in (here, ahead))
        k_rotated = [rotate(x, rope, position, layout="half")[:, 0] for x in both]
        before, after = (
            (cache.spec.scale * ahead_GTD @ x.T).masked_fill(own, -torch.inf).logsumexp(-1) for x in k_rotated
        )
        current = (cache.spec.scale * here_GTD @ k_rotated[0].T).logsumexp(-1)
        b = chunk_bias(cache, ahead_GTD, step_sizes[head], rope is not None)
        rotary = [x.flatten() for x in ((before - current) / 2, after - before, b)]
        rows = q_p[:, heads].transpose(0, 1).flatten(0, 1)
        order = projection.layout
        k_p = [mapped(model_order(x, order), inverse, SIZE)[:, 0] for x in both]
        scores = [cache.spec.scale * rows @ x.T for x in k_p]
        b_p = []
        for frame, matrix in enumerate(inverse):
            pulled = torch.einsum("ij,tgi->tgj", matrix, rows.unflatten(-1, (-1, 4))).flatten(-2)
            square_step_size = model_order(step_sizes[head], order)[frame * SIZE : (frame + 1) * SIZE].square().mean(0)
            b_p.append((pulled.square() @ square_step_size * cache.spec.scale**2 / 24)[:, None].expand(-1, SIZE))
        exact, stored, corrected = (
            x.masked_fill(own.repeat(3, 1), -torch.inf).logsumexp(-1)
            for x in (*scores, scores[1] - torch.cat(b_p, dim=1))
        )
        projected = (exact - scores[0].logsumexp(-1)) / 2, stored - exact, stored - corrected
        expected = balanced_alpha(*(torch.cat(parts) for parts in zip(rotary, projected, strict=True)))
        torch.testing.assert_close(chunk.alpha[0, head].double(), expected, rtol=2e-2, atol=1e-2)
        assert abs(float(expected) - 1) > 0.1


# ---------------------------------------------------------------------- what is refused


def attend_once(cache, asked: QueryRange, projection, rope=None, **options):
    with cache.denoise([asked]) as step:
        step.attend(0, *inputs(cache, step.plan.num_tokens, 0), rope, projections=[projection], **options)


def test_frames_and_maps_must_agree():
    cache = make_cache()
    stream = cache.open(Window(0, 1), 120)
    with pytest.raises(ShapeError, match=r"range 0 has 40 tokens, 10 per frame, and maps of shape \(3, 4, 4\)"):
        attend_once(cache, QueryRange(stream, num_tokens=40, tag=(1, 3)), SeededProjection(SIZE))
    with pytest.raises(ShapeError, match="range 0 has 45 tokens"):
        attend_once(cache, QueryRange(stream, num_tokens=45, tag=(1, 4)), SeededProjection(SIZE))


def test_both_views_must_pair_channels_alike():
    cache = make_cache()
    stream = cache.open(Window(0, 1), 120)
    with pytest.raises(ShapeError, match="the projection's layout is 'half', but keys are stored from 'interleaved'"):
        attend_once(cache, frames(stream, 1, 4), SeededProjection(SIZE, "half"), ROPES["interleaved"])


def test_keys_that_arrive_rotated_cannot_be_projected():
    cache = make_cache(keys_arrive="rotated")
    stream = cache.open(Window(0, 1), 120)
    with pytest.raises(StateError, match="keys that arrive rotated"):
        attend_once(cache, frames(stream, 1, 4), SeededProjection(SIZE), ROPES["half"])


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ([], None),
        ([None, None], "context for 2 ranges was given; this step has 1"),
        ([(torch.zeros(3, 1, 64), torch.zeros(3, 1, 64))], r"context of range 0 has shape \(3, 1, 64\)"),
        ([(torch.zeros(3, 2, 64), torch.zeros(4, 2, 64))], r"context of range 0 has shape \(4, 2, 64\)"),
        ([(torch.zeros(3, 2, 64).bfloat16(), torch.zeros(3, 2, 64).bfloat16())], "torch.bfloat16"),
    ],
)
def test_context_must_fit(context, message):
    cache = make_cache()
    stream = cache.open(Window(0, 1), 120)
    if message is None:
        attend_once(cache, frames(stream, 1, 4), SeededProjection(SIZE), context=context)
        return
    with pytest.raises(ShapeError, match=message):
        attend_once(cache, frames(stream, 1, 4), SeededProjection(SIZE), context=context)


def test_the_rotary_view_still_equals_its_own_reference():
    cache, rope = make_cache("int2"), ROPES["interleaved"]
    stream = history(cache, [12, 3], 1, "interleaved")
    with cache.denoise([frames(stream, 7, 4)]) as step:
        q, k, v = inputs(cache, 40, 5)
        out = step.attend(0, q, k, v, rope, projections=[SeededProjection(SIZE, "interleaved")])[0]
        expected = expected_attention(cache, step, 0, q, k, v, rope)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
