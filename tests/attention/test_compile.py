"""Hosts that compile their layers: the eager result and the eager pages, in one graph that serves every step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pagedvid import CacheSpec, Compilable, GridRotary, NonFiniteError, PagedKVCache, StateError, StreamCodecs, Window
from pagedvid.attention.operator import attend_operator, store_operator
from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.calibration.observe import ObservingCache
from pagedvid.handles import object_of
from tests.attention.projective_reference import SeededProjection
from tests.attention.reference import TableRope

LAYERS, KV_HEADS, GROUP, HEAD_DIM, WIDTH = 3, 2, 2, 16, 24
FRAME_TOKENS = 6
TOKENS = 2 * FRAME_TOKENS
Q, KV = KV_HEADS * GROUP * HEAD_DIM, KV_HEADS * HEAD_DIM


class Block(nn.Module):
    """A host's layer. Its number is a tensor, so that all layers share one graph."""

    def __init__(self, number: int | Tensor) -> None:
        super().__init__()
        self.number = number
        self.qkv, self.out = nn.Linear(WIDTH, Q + 2 * KV), nn.Linear(Q, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor, step: Step, rope: Any, **options: Any) -> Tensor:
        q, k, v = (each.unflatten(-1, (-1, HEAD_DIM)) for each in self.qkv(x).split((Q, KV, KV), dim=-1))
        x = x + self.out(step.attend(self.number, q, k, v, rope, **options).flatten(-2))
        return x + self.mlp(x)


@dataclass(frozen=True)
class HostRope(Compilable, TableRope):
    """A rope of the host's own class."""


@dataclass(frozen=True)
class HostProjection(Compilable, SeededProjection):
    """A projection of the host's own class."""


@pytest.fixture(autouse=True)
def no_graph_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.compiler.reset()


def make_cache(codecs: str = "int4/int2", **settings: Any) -> PagedKVCache:
    spec = CacheSpec(
        LAYERS, KV_HEADS, HEAD_DIM, num_query_heads=KV_HEADS * GROUP, codecs=StreamCodecs(codecs), **settings
    )
    return PagedKVCache(spec, "2MiB")


def make_blocks(numbers: Sequence[int | Tensor] = tuple(map(torch.tensor, range(LAYERS)))) -> list[Block]:
    torch.manual_seed(1)
    return [Block(number) for number in numbers]


def grid_rope(theta: float = 100.0) -> GridRotary:
    return GridRotary.from_theta((8, 4, 4), 2, 3, "interleaved", theta=theta)


def qkv(num_tokens: int = TOKENS, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_tokens, n, HEAD_DIM, generator=generator) for n in (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)]


def commit(cache: PagedKVCache, stream: Any, rope: Any, seed: int = 0) -> None:
    with cache.commit([stream]) as step:
        for layer in range(LAYERS):
            step.attend(layer, *qkv(seed=seed + layer), rope)


def video(cache: PagedKVCache, layers: Sequence[Callable[..., Tensor]], rope: Any, chunks: int = 4) -> list[Tensor]:
    """Outputs of all steps, and the stored keys and values: the window slides, so that history grows and shrinks."""
    stream, outs = cache.open(Window(1, 2), TOKENS), []
    for chunk in range(chunks):
        x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(chunk))
        for is_commit in (False, False, True):
            with cache.step([QueryRange(stream, commit=is_commit)]) as step:
                for layer in layers:
                    x = layer(x, step, rope)
            outs.append(x)
    stored = [cache.read(stream, index, layer) for index in stream.history("cond").chunks for layer in range(LAYERS)]
    return outs + [each for layer in stored for each in (layer.k, layer.v)]


def assert_all_close(given: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(given) == len(expected)
    for each, other in zip(given, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- one graph


def test_inductor_gives_the_eager_video_in_one_graph_for_all_layers_steps_and_histories() -> None:
    blocks, rope = make_blocks(), grid_rope()
    expected = video(make_cache(), blocks, rope)
    compiled = [torch.compile(block, fullgraph=True) for block in blocks]
    cache = make_cache()
    stream = cache.open(Window(1, 2), TOKENS)
    with cache.denoise([stream]) as step:
        compiled[0](torch.randn(TOKENS, WIDTH), step, rope)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_all_close(video(make_cache(), compiled, rope), expected)


def test_inductor_compiles_a_whole_model_whose_layers_are_plain_numbers() -> None:
    blocks, rope = make_blocks(range(LAYERS)), grid_rope()

    def model(x: Tensor, step: Step, rope: Any) -> Tensor:
        for block in blocks:
            x = block(x, step, rope)
        return x

    compiled = torch.compile(model, fullgraph=True)
    assert_all_close(video(make_cache(), [compiled], rope, 2), video(make_cache(), [model], rope, 2))


def test_chunks_of_other_lengths_compile_once_more() -> None:
    """As many graphs as PyTorch makes for a layer without attention: one for a length, one for all lengths."""
    graphs: list[int] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    block, cache, rope = make_blocks()[0], make_cache(), HostRope("half", HEAD_DIM)
    compiled = torch.compile(block, backend=counted, fullgraph=True)
    stream = cache.open(Window(1, 2), TOKENS)
    commit(cache, stream, rope)
    for num_tokens in (5, 7, 11, TOKENS):
        x = torch.randn(num_tokens, WIDTH)
        with cache.denoise([QueryRange(stream, num_tokens=num_tokens)]) as step:
            assert_all_close([compiled(x, step, rope)], [block(x, step, rope)])
    assert len(graphs) == 2


# ---------------------------------------------------------------------- nothing is taken for something else


def compiled_attend(backend: str = "aot_eager") -> Callable[..., Tensor]:
    """One compiled call for all arguments: a second compilation is an error from then on."""

    def call(step: Step, q: Tensor, k: Tensor, v: Tensor, rope: Any, **options: Any) -> Tensor:
        return 1.0 * step.attend(0, q, k, v, rope, **options)

    return torch.compile(call, backend=backend, fullgraph=True)


def test_of_two_open_steps_each_call_reaches_its_own() -> None:
    cache, rope, attend = make_cache(), grid_rope(), compiled_attend()
    streams = [cache.open(Window(1, 2), TOKENS) for _ in range(2)]
    for number, stream in enumerate(streams):
        commit(cache, stream, rope, seed=10 * number)
    other_cache = make_cache()
    streams.append(other_cache.open(Window(1, 2), TOKENS))
    with cache.denoise(streams[:1]) as a, cache.denoise(streams[1:2]) as b, other_cache.denoise(streams[2:]) as c:
        expected = [step.attend(0, *qkv(seed=5), rope) for step in (a, b, c)]
        attend(a, *qkv(), rope)
        with torch.compiler.set_stance("fail_on_recompile"):
            for step, out in ((b, expected[1]), (a, expected[0]), (c, expected[2]), (b, expected[1])):
                assert_all_close([attend(step, *qkv(seed=5), rope)], [out])
    assert not torch.allclose(expected[0], expected[1]) and not torch.allclose(expected[0], expected[2])


def test_a_step_that_has_ended_is_refused() -> None:
    cache, attend = make_cache(), compiled_attend()
    stream = cache.open(Window(1, 2), TOKENS)
    with cache.denoise([stream]) as step:
        attend(step, *qkv(), None)
    with pytest.raises(StateError, match="this step has ended"):
        attend(step, *qkv(), None)


def test_another_rope_is_not_taken_for_the_first() -> None:
    """Two objects of one class, in one graph."""
    other = HostRope("interleaved", HEAD_DIM)
    attend, ropes = compiled_attend(), [HostRope("half", HEAD_DIM), other]
    opened = []
    for number, rope in enumerate(ropes):
        cache = make_cache()
        opened.append((cache, cache.open(Window(1, 2), TOKENS)))
        commit(*opened[number], rope)
        with cache.denoise([opened[number][1]]) as step:
            with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
                out = attend(step, *qkv(), rope)
            assert_all_close([out], [step.attend(0, *qkv(), rope)])
    cache, stream = opened[0]
    with cache.denoise([stream]) as step, torch.compiler.set_stance("fail_on_recompile"):
        attend(step, *qkv(), ropes[0])
        with pytest.raises(StateError, match="keys were stored under"):
            attend(step, *qkv(), other)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda rope: pickle.loads(pickle.dumps(rope))])
def test_a_copy_has_a_handle_of_its_own(duplicate: Callable[[HostRope], HostRope]) -> None:
    rope = HostRope("half", HEAD_DIM)
    other = duplicate(rope)
    assert other == rope and other is not rope
    assert object_of(rope.handle) is rope and object_of(other.handle) is other


def test_an_object_that_is_gone_is_refused_by_name() -> None:
    handle = HostRope("half", HEAD_DIM).handle
    with pytest.raises(StateError, match="that is gone"):
        object_of(handle)


def test_a_handle_works_in_and_out_of_inference_mode() -> None:
    cache, attend = make_cache(), compiled_attend()
    streams = [cache.open(Window(1, 2), TOKENS) for _ in range(2)]
    with torch.inference_mode(), cache.denoise(streams[:1]) as step:
        with torch.inference_mode(False), torch.no_grad():
            expected = step.attend(0, *qkv(), None)
            assert_all_close([attend(step, *qkv(), None)], [expected])
        assert_all_close([attend(step, *qkv(), None)], [expected])


# ---------------------------------------------------------------------- storing


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_calls_are_neither_merged_nor_removed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Counting(Step):
        def _require_open(self) -> None:
            calls.append(1)

    def layers(step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        step.attend(0, q, k, v)
        step.attend(0, q, k, v)
        return step.attend(1, q, k, v) + step.attend(1, q, k, v)

    cache = make_cache()
    monkeypatch.setattr("pagedvid.paged_kv_cache.Step", Counting)
    with cache.denoise([cache.open(Window(1, 2), TOKENS)]) as step:
        torch.compile(layers, backend=backend, fullgraph=True)(step, *qkv())
    assert len(calls) == 4


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("store", [False, True])
def test_a_commit_stores_though_its_outputs_are_dropped(backend: str, store: bool) -> None:
    rope, caches = grid_rope(), [make_cache(), make_cache()]

    def layers(step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for layer in range(LAYERS):
            if store:
                step.store(layer, k + layer, v, rope, q_THD=q)
            else:
                step.attend(layer, q, k + layer, v, rope)
        return q + 1

    pages = []
    for cache, function in zip(caches, (layers, torch.compile(layers, backend=backend, fullgraph=True)), strict=True):
        stream = cache.open(Window(1, 2), TOKENS)
        for seed in range(2):
            with cache.commit([stream]) as step:
                function(step, *qkv(seed=seed))
        ids = [chunk.table.ids for chunk in stream.history("cond").chunks.values()]
        pages.append(torch.cat([cache.pool.read(each) for each in ids]))
    assert torch.equal(*pages)


def test_a_layer_attended_twice_in_a_commit_pass_is_an_error_as_it_is_eagerly() -> None:
    cache, attend = make_cache(), compiled_attend("inductor")
    stream = cache.open(Window(1, 2), TOKENS)
    with pytest.raises(StateError, match="attended twice"), cache.commit([stream]) as step:
        attend(step, *qkv(), None)
        attend(step, *qkv(), None)
    assert cache.pool.num_used_pages == 0


def test_an_error_of_the_eager_call_keeps_its_type_and_rolls_the_commit_back() -> None:
    cache, attend = make_cache(), compiled_attend("inductor")
    stream = cache.open(Window(1, 2), TOKENS)
    q, k, v = qkv()
    k[3, 1, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 0"), cache.commit([stream]) as step:
        attend(step, q, k, v, None)
        for layer in range(1, LAYERS):
            step.attend(layer, *qkv())
    cache.check()


# ---------------------------------------------------------------------- all arguments


def test_projections_and_context() -> None:
    rope, projections = HostRope("half", HEAD_DIM), [HostProjection(FRAME_TOKENS), HostProjection(FRAME_TOKENS)]
    cache, attend = make_cache(), compiled_attend()
    streams = [cache.open(Window(1, 2), TOKENS) for _ in range(2)]
    text = torch.randn(2, 5, KV_HEADS, HEAD_DIM)
    options = {"projections": projections, "context": [None, tuple(text)]}
    for is_commit in (True, False):
        ranges = [QueryRange(stream, commit=is_commit, tag=(3, 2)) for stream in streams]
        with cache.step(ranges) as step:
            if is_commit:
                for layer in range(LAYERS):
                    step.attend(layer, *qkv(2 * TOKENS), rope, **options)
                continue
            out = attend(step, *qkv(2 * TOKENS), rope, **options)
            assert out.shape == (3, 2 * TOKENS, KV_HEADS * GROUP, HEAD_DIM)
            assert_all_close([out], [step.attend(0, *qkv(2 * TOKENS), rope, **options)])


def test_no_gradient_flows_through_and_all_others_are_the_eager_ones() -> None:
    block, cache, rope = make_blocks()[0], make_cache(), grid_rope()
    stream = cache.open(Window(1, 2), TOKENS)
    x, gradients = torch.randn(TOKENS, WIDTH), []
    with torch.enable_grad(), cache.denoise([stream]) as step:
        for layer in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
            block.zero_grad()
            layer(x, step, rope).square().sum().backward()
            assert block.qkv.weight.grad is None
            gradients.append([each.grad.clone() for each in block.parameters() if each.grad is not None])
    assert len(gradients[0]) == 6
    assert_all_close(gradients[1], gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype: torch.dtype) -> None:
    block, cache, rope = make_blocks()[0], make_cache(), grid_rope()
    stream, x = cache.open(Window(1, 2), TOKENS), torch.randn(TOKENS, WIDTH)
    commit(cache, stream, rope)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype), cache.denoise([stream]) as step:
        torch.testing.assert_close(compiled(x, step, rope), block(x, step, rope))


def test_a_full_graph_says_what_a_rope_without_a_handle_needs() -> None:
    cache, attend = make_cache(), compiled_attend()
    expected = pytest.raises(RuntimeError, match=r"TableRope: derive its class from pagedvid\.Compilable")
    with cache.denoise([cache.open(Window(1, 2), TOKENS)]) as step, expected:
        attend(step, *qkv(), TableRope("half", HEAD_DIM))


def test_it_breaks_other_graphs_in_two_whatever_the_history() -> None:
    graphs: list[int] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    block, rope = make_blocks()[0], TableRope("half", HEAD_DIM)
    compiled, cache = torch.compile(block, backend=counted), make_cache()
    stream = cache.open(Window(1, 2), TOKENS)
    for _ in range(3):
        x = torch.randn(TOKENS, WIDTH)
        with cache.denoise([stream]) as step:
            assert_all_close([compiled(x, step, rope)], [block(x, step, rope)])
        commit(cache, stream, rope)
    assert len(graphs) == 2 and max(graphs) < 40


def test_the_operators_are_what_their_declarations_say() -> None:
    cache = make_cache()
    streams = [cache.open(Window(1, 2), TOKENS) for _ in range(2)]
    q, k, v = qkv()
    checks = ("test_schema", "test_faketensor")
    with cache.denoise(streams[:1]) as step:
        for projections, context in (([], []), ([], [k[:2], v[:2]])):
            arguments = (step.handle, 0, None, q, k, v, None, projections, context)
            torch.library.opcheck(attend_operator, arguments, test_utils=checks)
    with pytest.raises(StateError, match="before layers"), cache.commit(streams[1:]) as step:
        arguments = (step.handle, 0, torch.tensor(1), k, v, None, q)
        torch.library.opcheck(store_operator, arguments, test_utils=("test_schema",))


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="PyTorch has no such tag")
def test_cuda_graphs_that_pytorch_records_leave_the_operators_out() -> None:
    for operator in (torch.ops.pagedvid.attend, torch.ops.pagedvid.store):
        assert torch.Tag.cudagraph_unsafe in operator.default.tags


def test_a_cache_that_observes_sees_compiled_calls() -> None:
    spec = CacheSpec(LAYERS, KV_HEADS, HEAD_DIM, codecs=StreamCodecs("bf16"), tokens_per_frame=FRAME_TOKENS)
    cache, attend = ObservingCache(spec, "2MiB"), compiled_attend()
    _, k, v = qkv()
    with cache.denoise([cache.open(Window(1, 2), TOKENS)]) as step:
        assert_all_close([attend(step, k, k, v, None)], [step.attend(0, k, k, v)])
