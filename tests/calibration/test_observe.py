"""An observing cache sees what the model gave: every stored chunk once, and the queries that read chunks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.calibration import observe
from pagedvid.calibration.fit import fit
from pagedvid.calibration.observe import ObservingCache
from pagedvid.calibration.statistics import LayerStatistics, Observation
from pagedvid.codecs.tables_file import Calibration
from pagedvid.errors import ConfigError
from pagedvid.rotary.tables import from_half_layout, rotate, to_half_layout
from tests.attention.reference import TableRope
from tests.engine.toy_model import toy_engine

NUM_LAYERS, KV_HEADS, GROUP, HEAD_DIM, CHUNK_TOKENS = 2, 2, 3, 8, 12


@pytest.fixture(autouse=True)
def readings(monkeypatch) -> Iterator[list[Observation]]:
    """Samples every forward, and gives the readings that are counted, in order."""
    seen: list[Observation] = []
    add = LayerStatistics.add_reading

    def note(self: LayerStatistics, observation: Observation) -> None:
        seen.append(observation)
        add(self, observation)

    monkeypatch.setattr(LayerStatistics, "add_reading", note)
    monkeypatch.setattr(observe, "SHARE", 1.0)
    yield seen


def observing_cache(**changes) -> ObservingCache:
    spec = CacheSpec(
        NUM_LAYERS,
        KV_HEADS,
        HEAD_DIM,
        GROUP * KV_HEADS,
        codecs=StreamCodecs("fp32"),
        tokens_per_frame=4,
        frames_per_block=3,
        **changes,
    )
    return ObservingCache(spec, "1MiB")


def random_qkv(seed: int, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heads = (GROUP * KV_HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (torch.randn(num_tokens, count, HEAD_DIM, generator=generator) for count in heads)
    return q, k, v


def run(cache: ObservingCache, ranges: list[QueryRange], seed: int, rope=None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """All layers; returns what was given, by layer."""
    with cache.step(ranges) as step:
        given = [random_qkv(10 * seed + layer, step.plan.num_tokens) for layer in range(NUM_LAYERS)]
        for layer, (q, k, v) in enumerate(given):
            step.attend(layer, q, k, v, rope)
    return given


@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
def test_readings_hold_stored_chunks_and_all_queries_of_a_group(readings, layout):
    rope = None if layout is None else TableRope(layout, HEAD_DIM)
    cache = observing_cache()
    stream = cache.open(Window(1, 1), CHUNK_TOKENS)
    stored = [run(cache, [QueryRange(stream, commit=True)], seed, rope) for seed in (1, 2)]
    readings.clear()
    given = run(cache, [QueryRange(stream)], 3, rope)
    assert len(readings) == NUM_LAYERS
    for layer, seen in enumerate(readings):
        inner = (lambda x: x) if layout is None else (lambda x: to_half_layout(x, layout))
        for chunk in range(2):
            _, k, v = stored[chunk][layer]
            torch.testing.assert_close(seen.k_CHTD[chunk], inner(k).transpose(0, 1))
            torch.testing.assert_close(seen.v_CHTD[chunk], v.transpose(0, 1))
        q, k, v = given[layer]
        assert seen.q_LHTD.shape == (GROUP, KV_HEADS, CHUNK_TOKENS, HEAD_DIM)
        for head in range(GROUP * KV_HEADS):
            torch.testing.assert_close(seen.q_LHTD[head % GROUP, head // GROUP], inner(q)[:, head])
        for member in range(GROUP):
            torch.testing.assert_close(seen.current_k_LHTD[member], inner(k).transpose(0, 1))
            torch.testing.assert_close(seen.current_v_LHTD[member], v.transpose(0, 1))
        rotated = seen.rotated(seen.q_LHTD, -1)
        if rope is None:
            assert torch.equal(rotated, seen.q_LHTD)
        else:
            torch.testing.assert_close(rotated, rotate(seen.q_LHTD, *rope.tables(2 * CHUNK_TOKENS, CHUNK_TOKENS)))


def test_every_stored_chunk_counts_once_and_others_do_not():
    cache = observing_cache()
    streams = [cache.open(Window(0, 1), CHUNK_TOKENS, branches=("cond", "uncond")) for _ in range(2)]
    run(cache, [QueryRange(streams[0], branch, commit=True) for branch in ("cond", "uncond")], 1)
    run(cache, [QueryRange(streams[0]), QueryRange(streams[1], commit=True)], 2)
    for layer in cache.statistics:
        assert layer.keys.num_blocks == layer.values.num_blocks == 3 * 4  # a block for each place of a frame


def test_outputs_are_those_of_a_cache_that_does_not_look(readings):
    plain = toy_engine(codecs="fp32")
    watched = ObservingCache(plain.cache.spec, 800 * plain.cache.spec.shape.page_bytes)
    outs = []
    for cache in (plain.cache, watched):
        stream = cache.open(Window(1, 1), 21)
        for seed in (1, 2):
            with cache.commit([stream]) as step:
                generator = torch.Generator().manual_seed(seed)
                shapes = [(21, count, 8) for count in (4, 2, 2)]
                outs.append(
                    [
                        step.attend(layer, *(torch.randn(shape, generator=generator) for shape in shapes))
                        for layer in range(2)
                    ]
                )
        cache.check()
    assert all(torch.equal(a, b) for i in (0, 1) for a, b in zip(outs[i], outs[i + 2], strict=True))
    assert readings


def test_chunks_of_another_length_and_beyond_a_few_are_left_out(readings, monkeypatch):
    monkeypatch.setattr(observe, "MAX_CHUNKS", 2)
    cache = observing_cache()
    stream = cache.open(Window(0, 4), CHUNK_TOKENS)
    for seed, num_tokens in enumerate((4, CHUNK_TOKENS, CHUNK_TOKENS, CHUNK_TOKENS)):
        run(cache, [QueryRange(stream, "cond", num_tokens, commit=True)], seed)
    readings.clear()
    run(cache, [QueryRange(stream)], 9)
    assert [len(seen.k_CHTD) for seen in readings] == [2] * NUM_LAYERS
    readings.clear()
    run(cache, [QueryRange(stream, "cond", 8)], 9)
    assert not readings


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_keys_that_arrive_rotated_are_observed_before_rotation(readings, layout):
    rope, seen = TableRope(layout, HEAD_DIM), []
    for keys_arrive in ("before_rotary", "rotated"):
        cache = observing_cache(keys_arrive=keys_arrive)
        stream = cache.open(Window(1, 1), CHUNK_TOKENS)
        for commit in (True, False):
            with cache.step([QueryRange(stream, commit=commit)]) as step:
                for layer in range(NUM_LAYERS):
                    q, k, v = random_qkv(layer, CHUNK_TOKENS)
                    if keys_arrive == "rotated":
                        q, k = (rotated_by(rope, x, step.plan.ranges[0].first_token) for x in (q, k))
                    step.attend(layer, q, k, v, rope)
        seen.append((list(readings), cache.calibration("toy").tensors))
        readings.clear()
    for plain, rotated in zip(*(readings for readings, _ in seen), strict=True):
        for name in ("k_CHTD", "v_CHTD", "q_LHTD", "current_k_LHTD", "current_v_LHTD", "cos_CTP", "sin_CTP"):
            torch.testing.assert_close(getattr(rotated, name), getattr(plain, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[1][1]["keys.mean"], seen[0][1]["keys.mean"], rtol=1e-4, atol=1e-5)


def rotated_by(rope: TableRope, x_nHD: Tensor, first_token: int) -> Tensor:
    """Rotated as by a host, in its own layout."""
    cos, sin = (table.unsqueeze(1) for table in rope.tables(first_token, len(x_nHD)))
    return from_half_layout(rotate(to_half_layout(x_nHD, rope.layout), cos, sin), rope.layout)


def test_the_calibration_is_that_of_the_statistics():
    cache = observing_cache()
    stream = cache.open(Window(1, 1), CHUNK_TOKENS)
    with pytest.raises(ConfigError, match=r"a layer was not observed; run the model .* for more than one chunk"):
        cache.calibration("toy")
    run(cache, [QueryRange(stream, commit=True)], 1)
    run(cache, [QueryRange(stream)], 2)
    made = cache.calibration("toy", "one video")
    assert (made.model, made.calibrated_on, made.num_layers, made.num_kv_heads) == ("toy", "one video", 2, KV_HEADS)
    assert (made.tokens_per_frame, made.frames_per_block) == (4, 3)
    expected = Calibration.of("toy", *(fit(cache.statistics, kind) for kind in ("keys", "values")))
    assert all(torch.equal(made.tensors[name], x) for name, x in expected.tensors.items())
