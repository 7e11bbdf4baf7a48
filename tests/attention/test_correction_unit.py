"""`CacheSpec.correction_unit`: a b for every chunk, or for every run of pages with about the same b.

Pages are short (16 tokens of int2, 8 of int4), so that chunks of a few hundred tokens have many. Scenes change inside a
chunk, and not at the end of a page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid.attention.measure import MEASURED_QUERIES
from pagedvid.attention.page_runs import TOLERANCE
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.book import CodecBook
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.oracle import Keys, oracle_attention
from tests.attention.reference import (
    TableRope,
    as_arriving,
    balanced_alpha,
    chunk_bias,
    expected_attention,
    page_parts,
    random_qkv,
    read_chunk,
    rotate,
)
from tests.attention.scenes import make_cache
from tests.attention.triton_scenes import with_kernels
from tests.codecs.klt.kernels.scenes import klt_codec

EXACT = 1e-5
BY_BLOCK = 2e-3
"""Kernels decide for each block of queries in which channels b takes its exact form."""
NUM_TOKENS = 150
CUT, BRIGHT = 70, slice(50, 100)


def usual(k: Tensor) -> Tensor:
    return k


def cut(k: Tensor) -> Tensor:
    """Another scene from token 70 on: channels of other sizes and offsets."""
    return torch.cat([0.4 * k[:CUT], 1.6 * k[CUT:].flip(-1) + 1])


def bright(k: Tensor) -> Tensor:
    """One frame with three times the contrast."""
    k = 0.5 * k
    k[BRIGHT] *= 3
    return k


SCENES: dict[str, Callable[[Tensor], Tensor]] = {"usual": usual, "cut": cut, "bright": bright}


def by_operations(codecs: StreamCodecs | str, **settings: Any) -> PagedKVCache:
    return make_cache(codecs, **{"head_dim": 32, "page_rows": 8, "correction_unit": "page", **settings})


def by_kernels(codecs: StreamCodecs | str, **settings: Any) -> PagedKVCache:
    return with_kernels(by_operations(codecs, **settings))


pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")


def scene_qkv(cache: PagedKVCache, num_tokens: int, seed: int, scene: str) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = random_qkv(cache, num_tokens, seed)
    return 1.5 * q, SCENES[scene](k), v


def commit(
    cache: PagedKVCache, stream: Stream, scene: str, seed: int, rope=None, num_tokens: int = NUM_TOKENS
) -> Chunk:
    """Commits a chunk with the same scene in all layers."""
    with cache.commit([QueryRange(stream, num_tokens=num_tokens)]) as step:
        for layer in range(cache.spec.num_layers):
            q, k, v = scene_qkv(cache, num_tokens, 10 * seed + layer, scene)
            step.attend(layer, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)
    return list(stream.chunks())[-1]


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def check(cache: PagedKVCache, ranges: list[QueryRange], rope=None, tolerance: float = EXACT, **how: Any) -> None:
    """All layers of a step against the reference."""
    with cache.step(ranges) as step:
        for layer in range(cache.spec.num_layers):
            q, k, v = scene_qkv(cache, step.plan.num_tokens, 900 + layer, "usual")
            out = step.attend(layer, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)
            expected = expected_attention(cache, step, layer, q, k, v, rope, **how)
            assert relative_difference(out.double(), expected) <= tolerance


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("correction", ["formula", "measured"])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("codec", ["int2", "int4/int2", "int2-pair-s8", "int2-post", "token2-g16", "hadamard4-g32"])
def test_runs_of_pages_have_their_own_b(codec: str, scene: str, correction: str) -> None:
    """Exactly that of each run; and nearly that of every page by itself."""
    cache, rope = by_operations(codec, correction=correction), TableRope("half", 32)
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    chunk = commit(cache, stream, scene, 1, rope)
    assert all(sum(chunk.runs[layer]) == NUM_TOKENS for layer in range(2))
    if scene != "usual" and codec.startswith("int2"):
        assert all(2 <= len(chunk.runs[layer]) < len(page_parts(cache, chunk, layer)) for layer in range(2))
    check(cache, [QueryRange(stream, num_tokens=9)], rope)
    check(cache, [QueryRange(stream, num_tokens=9)], rope, TOLERANCE, by_page=True)


@pytest.mark.parametrize(("codec", "scene"), [("int2", "cut"), ("int4/int2", "bright"), ("token2-g16", "cut")])
def test_kernels_cut_and_read_the_same_runs(codec: str, scene: str) -> None:
    chunks, rope = [], TableRope("half", 32)
    for make in (by_operations, by_kernels):
        cache = make(codec)
        stream = cache.open(Window(1, 2), NUM_TOKENS)
        chunks.append(commit(cache, stream, scene, 1, rope))
        check(cache, [QueryRange(stream, num_tokens=9)], rope, EXACT if make is by_operations else BY_BLOCK)
    assert chunks[0].runs == chunks[1].runs


def test_several_streams_with_grouped_queries_and_mixed_codecs() -> None:
    """Streams of three scenes, so that chunks of equal length have different runs; sinks and the newest have other
    codecs; a fork; and a stream in its commit pass."""
    rope = TableRope("interleaved", 32)
    cache = by_operations(StreamCodecs("int2", sink="int8", newest="bf16"), group=3)
    streams = [cache.open(Window(1, 2, positions="window"), NUM_TOKENS) for _ in SCENES]
    for number, (scene, stream) in enumerate(zip(SCENES, streams, strict=True)):
        for seed in range(4):
            commit(cache, stream, scene, 10 * number + seed, rope)
    fork = cache.fork(streams[1])
    commit(cache, fork, "bright", 77, rope, 40)
    ranges = [QueryRange(stream, num_tokens=9) for stream in (*streams, fork)]
    ranges.append(QueryRange(cache.fork(streams[2]), "cond", 9, commit=True))
    check(cache, ranges, rope)


def test_kernels_read_streams_with_different_runs_together() -> None:
    cache = by_kernels("int2", group=2)
    streams = [cache.open(Window(1, 2), NUM_TOKENS) for _ in range(3)]
    for number, (stream, scene) in enumerate(zip(streams, ("cut", "bright", "cut"), strict=True)):
        commit(cache, stream, scene, number, num_tokens=90)
    check(cache, [QueryRange(stream, num_tokens=5) for stream in streams], tolerance=BY_BLOCK)


@pytest.mark.parametrize("scratch", [1, 30_000])
def test_a_scratch_that_holds_a_few_chunks_or_one(scratch: int) -> None:
    cache, rope = by_operations(StreamCodecs("int2", sink="bf16"), scratch=scratch), TableRope("half", 32)
    stream = cache.open(Window(1, 3), NUM_TOKENS)
    for seed, scene in enumerate(("usual", "cut", "cut", "bright")):
        commit(cache, stream, scene, seed, rope)
    check(cache, [QueryRange(stream, num_tokens=9)], rope)


def test_a_stream_is_read_alike_alone_and_among_others() -> None:
    cache = by_operations("int2")
    streams = [cache.open(Window(1, 2), NUM_TOKENS) for _ in range(4)]
    for number, (stream, scene) in enumerate(zip(streams, ("cut", "usual", "cut", "bright"), strict=True)):
        commit(cache, stream, scene, number)
    q, k, v = scene_qkv(cache, 36, 5, "usual")
    with cache.denoise([QueryRange(stream, num_tokens=9) for stream in streams]) as step:
        together = step.attend(0, q, k, v)
    for number, stream in enumerate(streams):
        own = slice(9 * number, 9 * number + 9)
        with cache.denoise([QueryRange(stream, num_tokens=9)]) as step:
            assert torch.equal(step.attend(0, q[own], k[own], v[own]), together[own])


@pytest.mark.parametrize("scene", ["cut", "bright"])
@pytest.mark.parametrize("codec", ["int2", "int4"])
@pytest.mark.parametrize("layout", [None, "half"])
def test_pages_are_nearer_to_the_correction_of_every_key(codec: str, scene: str, layout: str | None) -> None:
    """The oracle subtracts from every key's score the exact b of its own page at its own angle."""
    rope, errors = layout and TableRope(layout, 32), {}
    for unit in ("page", "chunk"):
        cache = by_operations(codec, correction="formula", correction_unit=unit)
        stream = cache.open(Window(1, 2), NUM_TOKENS)
        chunk = commit(cache, stream, scene, 1, rope)
        q, k, v = scene_qkv(cache, 40, 7, "usual")
        with cache.denoise([QueryRange(stream, num_tokens=40)]) as step:
            out = step.attend(0, q, k, v, rope)
        keys, values, step_sizes = read_chunk(cache, chunk, 0)
        q_rotated, k_rotated = (rotate(x, rope, NUM_TOKENS) for x in (q, k))
        angles = {} if rope is None else dict(zip(("cos", "sin"), rope.tables(0, NUM_TOKENS), strict=True))
        expected = [
            oracle_attention(
                q_rotated[:, head],
                [Keys(keys[head], values[head], step_sizes[head], **angles), Keys(k_rotated[:, head], v[:, head])],
                cache.spec.scale,
            )[0]
            for head in range(2)
        ]
        errors[unit] = relative_difference(out.double(), torch.stack(expected, dim=1))
    if codec == "int2":
        assert errors["page"] < 0.7 * errors["chunk"]
    else:  # b of a whole chunk is below the tolerance, so no chunk is cut
        assert errors["page"] == errors["chunk"] < 5e-3


# ---------------------------------------------------------------------- what a commit pass notes


def test_runs_keep_their_promise_for_the_queries_of_the_pass() -> None:
    """Mean b of each page, from its definition, is that of its run up to the tolerance."""
    rope = TableRope("half", 32)
    cache = by_operations("int2", group=2)
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    chunk = commit(cache, stream, "cut", 3, rope)
    sample = [int(i * (NUM_TOKENS - 1) / (MEASURED_QUERIES - 1)) for i in range(MEASURED_QUERIES)]
    for layer in range(2):
        q = rotate(scene_qkv(cache, NUM_TOKENS, 30 + layer, "cut")[0], rope, NUM_TOKENS)[sample]
        step_sizes = read_chunk(cache, chunk, layer)[2]
        for head in range(2):
            q_GTD = q[:, 2 * head : 2 * head + 2].transpose(0, 1)
            runs, pages = (
                [float(chunk_bias(cache, q_GTD, part, has_rope=True).mean()) for part in step_sizes[head].split(sizes)]
                for sizes in (list(chunk.runs[layer]), list(page_parts(cache, chunk, layer)))
            )
            ends, run, first = torch.tensor(chunk.runs[layer]).cumsum(0).tolist(), 0, 0
            for tokens, b in zip(page_parts(cache, chunk, layer), pages, strict=True):
                run += first >= ends[run]
                assert abs(b - runs[run]) <= 1.05 * TOLERANCE  # the mean of b is that of the mean to second order
                first += tokens


def test_alpha_is_fitted_with_b_of_every_page() -> None:
    cache = by_operations("int2", group=2)
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    q, k, v = scene_qkv(cache, NUM_TOKENS, 5, "cut")
    k[CUT:] = k[CUT:][torch.arange(NUM_TOKENS - CUT) % 5] + 0.05 * k[CUT:]  # round alike: the formula is plainly wrong
    with cache.commit([stream]) as step:
        for layer in range(2):
            step.attend(layer, q, k, v)
    (chunk,) = stream.chunks()
    keys, _, step_sizes = read_chunk(cache, chunk, 0)
    sample = [int(i * (NUM_TOKENS - 1) / (MEASURED_QUERIES - 1)) for i in range(MEASURED_QUERIES)]
    for head in range(2):
        q_GTD = q[sample, 2 * head : 2 * head + 2].transpose(0, 1).double()
        stored = leave_out(scores(cache, q_GTD, keys[head]), sample)
        b = [
            chunk_bias(cache, q_GTD, part, has_rope=False)[..., None].expand(-1, -1, len(part))
            for part in step_sizes[head].split(list(page_parts(cache, chunk, 0)))
        ]
        here = scores(cache, q_GTD, k[:, head])
        before, after, corrected = (
            x.logsumexp(-1).flatten() for x in (leave_out(here, sample), stored, stored - torch.cat(b, dim=-1))
        )
        log_odds = (before - here.logsumexp(-1).flatten()) / 2
        expected = float(balanced_alpha(log_odds, after - before, after - corrected))
        assert float(chunk.alpha[0, head]) == pytest.approx(expected, abs=1e-2)
    assert float(chunk.alpha[0].min()) < 0.9  # the formula would not do


def scores(cache: PagedKVCache, q_GTD: Tensor, k_nD: Tensor) -> Tensor:
    return cache.spec.scale * q_GTD @ k_nD.double().T


def leave_out(scores_GTn: Tensor, tokens: list[int]) -> Tensor:
    """Each query skips one key."""
    return scores_GTn.scatter(-1, torch.tensor(tokens).view(1, -1, 1).expand(len(scores_GTn), -1, 1), -torch.inf)


def test_a_recoded_chunk_gets_runs_of_its_own() -> None:
    """The newest chunk is cut into none, as it is not corrected."""
    cache = by_operations(StreamCodecs("int2", newest="bf16"))
    stream = cache.open(Window(0, 3), NUM_TOKENS)
    assert commit(cache, stream, "cut", 1).runs == {}
    commit(cache, stream, "usual", 2)
    recoded = next(stream.chunks())
    assert set(recoded.runs) == {0, 1} and all(len(runs) >= 2 for runs in recoded.runs.values())
    check(cache, [QueryRange(stream, num_tokens=9)])


@pytest.mark.parametrize("correction", ["formula", "measured"])
def test_a_recoded_chunk_keeps_the_runs_of_layers_that_keep_their_codec(correction: str) -> None:
    """Keys of layer 1 are int2 before and after; only its values change."""
    codecs = StreamCodecs("int4/int4", newest="int2/int8", layers={1: "int2/int4"})
    cache = by_operations(codecs, correction=correction)
    stream = cache.open(Window(0, 3), NUM_TOKENS)
    first = commit(cache, stream, "cut", 1)
    commit(cache, stream, "usual", 2)
    recoded = next(stream.chunks())
    assert recoded is not first and recoded.runs[1] == first.runs[1] and len(first.runs[1]) >= 2
    assert recoded.runs[0] != first.runs[0]  # other pages
    check(cache, [QueryRange(stream, num_tokens=9)])


def test_a_fork_shares_runs() -> None:
    cache = by_operations("int2")
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    chunk = commit(cache, stream, "cut", 1)
    fork = cache.fork(stream)
    cache.release(stream)
    assert next(fork.chunks()) is chunk and len(chunk.runs[0]) >= 2
    check(cache, [QueryRange(fork, num_tokens=9)])


@pytest.mark.parametrize("correction", ["formula", "measured"])
@pytest.mark.parametrize("scene", SCENES)
def test_a_host_that_stores_gets_the_runs_of_one_that_attends(scene: str, correction: str) -> None:
    cache, chunks = by_operations("int2", correction=correction), []
    for stores in (False, True):
        stream = cache.open(Window(1, 2), NUM_TOKENS)
        with cache.commit([stream]) as step:
            for layer in range(2):
                q, k, v = scene_qkv(cache, NUM_TOKENS, layer, scene)
                if stores:
                    step.store(layer, k, v, q_THD=q)
                else:
                    step.attend(layer, q, k, v)
        chunks += stream.chunks()
    assert chunks[0].runs == chunks[1].runs


def test_without_queries_all_components_count_alike() -> None:
    """As for queries that are 1 throughout."""
    cache, runs = by_operations("int2", correction="formula"), []
    for with_queries in (False, True):
        stream = cache.open(Window(1, 2), NUM_TOKENS)
        with cache.commit([stream]) as step:
            for layer in range(2):
                q, k, v = scene_qkv(cache, NUM_TOKENS, layer, "cut")
                step.store(layer, k, v, **({"q_THD": torch.ones_like(q)} if with_queries else {}))
        runs.append(next(stream.chunks()).runs)
        check(cache, [QueryRange(stream, num_tokens=9)])
    assert runs[0] == runs[1] and len(runs[0][0]) >= 2


@pytest.mark.parametrize(
    ("codec", "settings"),
    [
        ("int2", {"correction": "off"}),
        ("int2", {"correction": "variance"}),
        ("int2", {"correction": "formula", "correction_unit": "chunk"}),
        ("bf16", {}),
    ],
)
def test_elsewhere_a_chunk_is_one_part(codec: str, settings: dict[str, str]) -> None:
    cache = by_operations(codec, **settings)
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    assert commit(cache, stream, "cut", 1).runs == {}
    check(cache, [QueryRange(stream, num_tokens=9)])


def test_a_chunk_of_one_page_is_one_part() -> None:
    cache = by_operations("int2")
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    assert commit(cache, stream, "usual", 1, num_tokens=16).runs == {}
    check(cache, [QueryRange(stream, num_tokens=9)])


@pytest.mark.parametrize("correction", ["variance", "measured"])
def test_calibrated_codecs_have_no_step_sizes_and_no_runs(correction: str) -> None:
    outs = []
    for unit in ("chunk", "page"):
        codec = klt_codec("klt2", 32)
        page = codec.page
        spec = CacheSpec(
            1, 2, 32, codecs=StreamCodecs("klt2"), page_rows=page.rows, tokens_per_frame=page.tokens_per_frame,
            frames_per_block=page.frames_per_block, correction=correction, correction_unit=unit,
        )  # fmt: skip
        cache = PagedKVCache(spec, "1MiB", book=CodecBook(page, 2, own={"klt2": codec}))
        stream = cache.open(Window(1, 2), NUM_TOKENS)
        assert commit(cache, stream, "cut", 1).runs == {}
        with cache.denoise([QueryRange(stream, num_tokens=9)]) as step:
            outs.append(step.attend(0, *random_qkv(cache, 9, 5)))
    assert torch.equal(*outs)
