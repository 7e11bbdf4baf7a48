"""The surface that an engine embeds, used as its docstring shows."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import weakref

import pytest
import torch

import pagedvid
from pagedvid import CacheSpec, PagedKVCache, QueryRange, Stream, StreamCodecs, Window
from pagedvid.errors import CapacityError, ConfigError, NonFiniteError, PagedvidError, StateError
from tests.cache.patterns import assert_holds, attend_all, attend_layer

SPEC = CacheSpec(num_layers=3, num_kv_heads=2, head_dim=8, num_query_heads=6, debug_checks=True)


@pytest.fixture
def cache() -> PagedKVCache:
    return PagedKVCache(SPEC, memory="1MiB")


def commit(cache: PagedKVCache, stream: Stream, serial: int) -> None:
    with cache.commit([stream]) as step:
        attend_all(cache, step, [serial])
    cache.check()


def serials_of(cache: PagedKVCache, stream: Stream, serials: dict[int, int]) -> None:
    """Every live chunk holds the pattern of its serial number."""
    chunks = list(stream.chunks())
    assert [chunk.index for chunk in chunks] == list(serials)
    for chunk in chunks:
        assert_holds(cache, chunk, serials[chunk.index])


def test_a_video_from_first_to_last_chunk(cache):
    stream = cache.open(Window(sink_chunks=1, recent_chunks=2), chunk_tokens=150)
    for index in range(6):
        for _ in range(3):
            with cache.denoise([stream]) as step:
                out = [attend_layer(cache, step, layer, [100]) for layer in range(3)]
            assert all(x.shape == (150, 6, 8) and torch.isfinite(x).all() for x in out)
        commit(cache, stream, index)
    serials_of(cache, stream, {0: 0, 4: 4, 5: 5})
    cache.release(stream)
    assert cache.stats().pages_used == 0


def test_history_is_seen(cache):
    stream = cache.open(Window(1, 2), 40)
    with cache.denoise([stream]) as step:
        alone = attend_layer(cache, step, 0, [9])
    commit(cache, stream, 1)
    with cache.denoise([stream]) as step:
        after = attend_layer(cache, step, 0, [9])
    assert float((alone - after).abs().max()) > 0.1


def test_denoising_leaves_no_trace(cache):
    stream = cache.open(Window(1, 2), 40)
    commit(cache, stream, 1)
    before, chunks = cache.stats(), list(stream.chunks())
    with cache.denoise([QueryRange(stream, commit=True)]) as step:  # what `denoise` means wins over the range
        attend_all(cache, step, [9])
    with cache.denoise([QueryRange(stream, replaces=0)]) as step:
        attend_all(cache, step, [9])
    assert cache.stats() == before and list(stream.chunks()) == chunks
    cache.check()


def test_commit_and_denoise_share_a_step(cache):
    a, b = cache.open(Window(1, 2), 40), cache.open(Window(1, 2), 60)
    with cache.step([QueryRange(a, commit=True), QueryRange(b)]) as step:
        attend_all(cache, step, [1, 2])
    serials_of(cache, a, {0: 1})
    serials_of(cache, b, {})


def test_forks_go_on_from_the_same_bytes_and_leave_each_other_alone(cache):
    """I7."""
    stream = cache.open(Window(1, 2), 40)
    for serial in (0, 1, 2):
        commit(cache, stream, serial)
    twin = cache.fork(stream)
    with cache.denoise([stream, twin]) as step:
        out = attend_layer(cache, step, 0, [9, 9])
    assert torch.equal(out[:40], out[40:])
    commit(cache, twin, 13)
    commit(cache, stream, 3)
    with cache.replace(twin, 0) as step:
        attend_all(cache, step, [10])
    serials_of(cache, stream, {0: 0, 2: 2, 3: 3})
    serials_of(cache, twin, {0: 10, 2: 2, 3: 13})
    cache.release(stream)
    serials_of(cache, twin, {0: 10, 2: 2, 3: 13})
    cache.check()


@pytest.mark.parametrize(
    "codecs",
    [
        StreamCodecs("int2"),
        StreamCodecs("int2", sink="int8", newest="bf16"),
        StreamCodecs("int4/int2", sink="bf16/int8", newest="int2/int4", layers=((1, 2, "int8/int2"),)),
    ],
    ids=str,
)
def test_replace_puts_new_values_in_the_place_of_old_ones(codecs):
    cache = PagedKVCache(SPEC, "1MiB")
    stream = cache.open(Window(1, 2), 150, codecs=codecs)
    for serial in range(5):
        commit(cache, stream, serial)
    kinds = [chunk.codecs for chunk in stream.chunks()]
    for index, serial in ((0, 20), (4, 24), (3, 23)):
        with cache.replace(stream, index) as step:
            attend_all(cache, step, [serial])
        cache.check()
    serials_of(cache, stream, {0: 20, 3: 23, 4: 24})
    assert [chunk.codecs for chunk in stream.chunks()] == kinds
    commit(cache, stream, 5)
    serials_of(cache, stream, {0: 20, 4: 24, 5: 5})


def test_a_replacement_that_fails_leaves_the_old_chunk(cache):
    stream = cache.open(Window(1, 2), 40)
    for serial in (0, 1):
        commit(cache, stream, serial)
    with pytest.raises(StateError, match=r"before layers \[1, 2\]"), cache.replace(stream, 1) as step:
        attend_layer(cache, step, 0, [9])
    serials_of(cache, stream, {0: 0, 1: 1})
    with pytest.raises(StateError, match=r"chunks \[7\] are not kept; the live chunks are \[0, 1\]"):
        cache.replace(stream, 7)
    cache.check()


def test_a_failed_commit_can_be_repeated(cache):
    stream = cache.open(Window(1, 2), 40)
    bad = torch.full((40, 2, 8), torch.nan)
    with pytest.raises(NonFiniteError, match="layer 0, KV head 0, 1, chunk 0"), cache.commit([stream]) as step:
        step.attend(0, bad.repeat(1, 3, 1), bad, bad)
    commit(cache, stream, 0)
    serials_of(cache, stream, {0: 0})


def test_an_error_that_is_swallowed_inside_the_block_does_not_publish(cache):
    stream = cache.open(Window(1, 2), 40)
    bad = torch.full((40, 2, 8), torch.nan)
    with (
        pytest.raises(StateError, match=r"before layers \[0, 1, 2\]"),
        cache.commit([stream]) as step,
        pytest.raises(NonFiniteError),
    ):
        step.attend(0, bad.repeat(1, 3, 1), bad, bad)
    assert list(stream.chunks()) == []
    cache.check()


def test_a_bare_stream_stands_for_its_branch_cond(cache):
    stream = cache.open(Window(1, 1), 40, branches=("left", "right"))
    with pytest.raises(StateError, match="no branch 'cond'; it was opened with left, right"), cache.denoise([stream]):
        pass
    with cache.commit([QueryRange(stream, "left"), QueryRange(stream, "right")]) as step:
        attend_all(cache, step, [1, 2])
    assert_holds(cache, stream.history("left").chunks[0], 1)
    assert_holds(cache, stream.history("right").chunks[0], 2)


def test_attention_inside_the_cache_needs_no_gradient(cache):
    stream = cache.open(Window(1, 1), 40)
    commit(cache, stream, 0)
    q, k = torch.randn(40, 6, 8, requires_grad=True), torch.randn(40, 2, 8, requires_grad=True)
    with cache.commit([stream]) as step:
        for layer in range(3):
            assert not step.attend(layer, q, k, k).requires_grad
    cache.check()


def test_memory_is_bytes_or_text():
    assert PagedKVCache(SPEC, 10 * 36 * 8).pool.num_pages == 10
    assert PagedKVCache(SPEC, "1MiB", scratch="1KiB").pool.num_pages == 2**20 // (36 * 8)
    with pytest.raises(CapacityError, match="holds no page; one needs 288 bytes"):
        PagedKVCache(SPEC, 100)
    with pytest.raises(ConfigError, match="'2 apples' is not a size"):
        PagedKVCache(SPEC, "2 apples")


def test_codecs_without_their_tables_are_refused_at_once(cache):
    with pytest.raises(ConfigError, match=r"klt2 needs tables of the model; .*`pagedvid calibrate`.* such as int2"):
        PagedKVCache(CacheSpec(1, 1, 8, codecs=StreamCodecs("int2", sink="int4/klt2")), "1MiB")
    with pytest.raises(ConfigError, match="klt2 needs tables of the model"):
        cache.open(Window(1, 1), 40, codecs=StreamCodecs("int2", layers=((2, 2, "klt2/int2"),)))
    with pytest.raises(ConfigError, match="stands for a codec under study"):
        cache.open(Window(1, 1), 40, codecs=StreamCodecs("int2", newest="sim"))
    assert cache.streams == ()
    cache.check()


def test_public_names_are_importable_and_others_are_not():
    for name in pagedvid.__all__:
        assert getattr(pagedvid, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Cache'"):
        _ = pagedvid.Cache


def test_public_names_come_from_where_they_are_defined():
    for name in set(pagedvid.__all__) - {"__version__"}:
        assert getattr(pagedvid, name).__module__ == pagedvid._HOMES[name], name


def test_every_error_is_public():
    classes = [each for each in vars(pagedvid.errors).values() if isinstance(each, type)]
    errors = {each.__name__ for each in classes if issubclass(each, PagedvidError)}
    assert errors == {name for name in pagedvid.__all__ if name.endswith("Error")}


INSIDE_ENGINES = (
    "pagedvid.integrations.lightx2v_classes",
    "pagedvid.integrations.vllm_omni.lingbot",
    "pagedvid.integrations.vllm_omni.runner",
)
"""Subclasses of engines that have environments of their own; see tests/engines."""


def test_every_module_can_be_imported_by_itself():
    """Where Triton is not installed, its kernels are the exception."""
    for module in pkgutil.walk_packages(pagedvid.__path__, "pagedvid."):
        if module.name.endswith("__main__") or module.name in INSIDE_ENGINES:
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name == "triton" and module.name.startswith("pagedvid.attention.kernels."), module.name


# ---------------------------------------------------------------------- what an embedder may write first


def one_layer(**spec) -> PagedKVCache:
    return PagedKVCache(CacheSpec(1, 2, 16, **spec), "64KiB")


FIRST_TRIES = {
    "codecs as text": (
        lambda c: CacheSpec(1, 2, 16, codecs="int2"),
        r"codecs is 'int2', of type str; give StreamCodecs\('int2'\)",
    ),
    "codecs of a stream": (lambda c: c.open(Window(1, 2), 8, codecs="int2"), r"give StreamCodecs\('int2'\)"),
    "no spec": (lambda c: PagedKVCache("int2", "64KiB"), r"spec is 'int2', of type str; give CacheSpec\(num_layers"),
    "no CUDA": (lambda c: PagedKVCache(c.spec, "64KiB", "cuda"), "device is 'cuda', but PyTorch sees 0 CUDA devices"),
    "a device that is none": (lambda c: PagedKVCache(c.spec, "64KiB", "gpu"), "device is 'gpu'; write cpu, cuda or"),
    "a device of another type": (lambda c: PagedKVCache(c.spec, "64KiB", 1.5), r"device is 1\.5; write cpu"),
    "branches as text": (
        lambda c: c.open(Window(1, 2), 8, branches="cond"),
        r"branches is 'cond'; give a list such as \('cond',\)",
    ),
    "branches as numbers": (
        lambda c: c.open(Window(1, 2), 8, branches=(0, 1)),
        r"branches\[0\] is 0, of type int; give \('cond',\)",
    ),
    "window as a tuple": (lambda c: c.open((1, 2), 8), r"window is \(1, 2\), of type tuple; give Window\("),
    "one stream": (
        lambda c: c.denoise(c.open(Window(1, 2), 8)),
        r"ranges is Stream\(0, 0 chunks committed\); give a list such as \[stream\]",
    ),
    "one range": (
        lambda c: c.commit(QueryRange(c.open(Window(1, 2), 8))),
        r"ranges is QueryRange\(.*; give a list such as \[stream\]",
    ),
    "ids": (lambda c: c.denoise([0]), r"ranges\[0\] is 0, of type int; give \[stream\]"),
    "a range of no stream": (
        lambda c: c.step([QueryRange(0)]).__enter__(),
        "stream is 0, of type int; give what `open` or",
    ),
    "release of an id": (lambda c: c.release(0), "stream is 0, of type int"),
    "a branch of another type": (lambda c: c.open(Window(1, 2), 8).history(["cond"]), "has no branch"),
}


@pytest.mark.parametrize("name", FIRST_TRIES)
def test_what_cannot_be_meant_says_what_to_write(name):
    call, message = FIRST_TRIES[name]
    if name == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is one")
    cache = one_layer()
    with pytest.raises(PagedvidError, match=message):
        call(cache)
    cache.check()


def test_a_step_takes_bare_streams_and_reads():
    cache = one_layer()
    stream = cache.open(Window(1, 2), 8)
    with cache.step([stream]) as step:
        step.attend(0, *torch.zeros(3, 8, 2, 16).unbind())
    assert stream.num_committed == 0


def test_its_memory_is_free_with_its_last_user():
    """Not at the next collection of garbage: the next cache needs it, and PyTorch's groups of ranks need their end."""
    gc.disable()
    try:
        cache = PagedKVCache(CacheSpec(2, 4, 64), memory="1MiB")
        pool = weakref.ref(cache.pool)
        del cache
        assert pool() is None
    finally:
        gc.enable()
