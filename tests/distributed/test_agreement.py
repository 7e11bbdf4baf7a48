"""What ranks decide together, and what they refuse: the same on all of them, although only one has the reason."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.errors import CapacityError, ConfigError, NonFiniteError, ShapeError
from pagedvid.handles import Compilable
from tests.attention.reference import TableRope
from tests.distributed.ranks import on_ranks
from tests.distributed.stories import CHUNK, CODECS, GROUP, HEAD_DIM, HEADS, LAYERS, ROPE, WINDOW, cache_of, qkv
from tests.distributed.test_sharded_cache import assert_same_image

BAD_HEAD = 4


class CompilableRope(Compilable, TableRope):
    pass


RANKS = 2


def error_of(kind: type[Exception], action) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def unstorable(group: dist.ProcessGroup) -> dict[str, object]:
    """A commit whose keys one head cannot store, then one that all can."""
    cache = cache_of(StreamCodecs("int4"), group)
    stream = cache.open(WINDOW, CHUNK)

    def commit(layer_with_bad: int) -> None:
        with cache.commit([stream]) as step:
            for layer in range(LAYERS):
                q, k, v = qkv(CHUNK, layer)
                if layer == layer_with_bad:
                    k[3, BAD_HEAD] = torch.inf
                assert bool(torch.isfinite(step.attend(layer, q, k, v, ROPE)[:, : GROUP * BAD_HEAD]).all())

    messages = [error_of(NonFiniteError, partial(commit, layer)) for layer in range(LAYERS)]
    used = cache.pool.num_used_pages
    commit(-1)
    cache.check()
    return {"messages": messages, "used": used, "after": cache.pool.num_used_pages}


def unequal_pools(group: dist.ProcessGroup) -> dict[str, object]:
    """The last rank has room for one stream, the others for many."""
    rank, page_bytes = dist.get_rank(group), HEAD_DIM * 36
    needed = cache_of(StreamCodecs("int2"), group).pages_needed(WINDOW, CHUNK)
    is_last = rank == dist.get_world_size(group) - 1
    cache = cache_of(StreamCodecs("int2"), group, memory=(needed if is_last else 100 * needed) * page_bytes)
    first = cache.open(WINDOW, CHUNK)
    message = error_of(CapacityError, lambda: cache.open(WINDOW, CHUNK))
    could_hold = cache.could_hold(needed), cache.could_hold(needed + 1)
    cache.release(first)
    cache.open(WINDOW, CHUNK)
    return {"message": message, "could_hold": could_hold}


def wrong_shapes(group: dist.ProcessGroup) -> list[str]:
    cache = cache_of(StreamCodecs("int2"), group)
    stream = cache.open(WINDOW, CHUNK)
    q, k, v = qkv(CHUNK, 0)
    with cache.denoise([stream]) as step:
        split = step.split_tokens()
        piece = [x[split.tokens] for x in (q, k, v)]
        return [
            error_of(ShapeError, lambda: step.attend(0, q, k[:, :-1], v, ROPE)),
            error_of(ShapeError, lambda: split.attend(0, q, k, v, ROPE)),
            error_of(ShapeError, lambda: split.attend(0, piece[0].bfloat16(), *piece[1:], ROPE)),
        ]


def stored_by_hosts_that_attend_themselves(group: dist.ProcessGroup | None):
    """One layer whole, the other in pieces."""
    cache = cache_of(CODECS["int4/int2"], group, debug_checks=True)
    stream = cache.open(WINDOW, CHUNK)
    for chunk in range(2):
        with cache.commit([stream]) as step:
            q, k, v = qkv(CHUNK, chunk)
            step.store(0, k, v, ROPE, q_THD=q)
            if group is None:
                step.store(1, k, v, ROPE, q_THD=q)
            else:
                split = step.split_tokens()
                split.store(1, *(x[split.tokens] for x in (k, v)), ROPE, q_THD=q[split.tokens])
    return cache.whole_image(cache.copy_out(stream)).without_objects()


def own_codecs_of_a_stream(group: dist.ProcessGroup | None):
    """A stream whose heads are stored unlike those of its cache."""
    cache = cache_of(StreamCodecs("int2"), group)
    stream = cache.open(WINDOW, CHUNK, codecs=CODECS["by head"])
    with cache.commit([QueryRange(stream)]) as step:
        for layer in range(LAYERS):
            step.attend(layer, *qkv(CHUNK, layer), ROPE)
    beyond = StreamCodecs("int2", look_back=[(0, 0, HEADS, 1, True)])
    message = error_of(ConfigError, lambda: cache.open(WINDOW, CHUNK, codecs=beyond))
    return cache.whole_image(cache.copy_out(stream)).without_objects(), message


def meshes(group: dist.ProcessGroup) -> list[object]:
    flat = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("heads",))
    square = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("videos", "heads"))
    return [
        cache_of(StreamCodecs("int2"), flat).spec.num_kv_heads,
        cache_of(StreamCodecs("int2"), square["heads"]).num_ranks,
        error_of(ConfigError, lambda: cache_of(StreamCodecs("int2"), square)),
        error_of(ConfigError, lambda: cache_of(StreamCodecs("int2"), "gloo")),
    ]


def compiled(group: dist.ProcessGroup) -> list[bool]:
    """Whether a compiled layer, whole and in pieces, gives what it gives otherwise."""
    cache = cache_of(StreamCodecs("int4"), group)
    stream, rope = cache.open(WINDOW, CHUNK), CompilableRope("half", HEAD_DIM)

    def layer(step: Compilable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return 2 * step.attend(0, q + 1, k, v, rope)

    in_graph, same = torch.compile(layer, backend="eager", fullgraph=True), []
    with cache.denoise([stream]) as step:
        split = step.split_tokens()
        whole = qkv(CHUNK, 0)
        for target, given in ((step, whole), (split, [x[split.tokens] for x in whole])):
            same.append(torch.equal(in_graph(target, *given), layer(target, *given)))
    return same


JOBS = (
    compiled,
    unstorable,
    unequal_pools,
    wrong_shapes,
    stored_by_hosts_that_attend_themselves,
    own_codecs_of_a_stream,
    meshes,
)


@pytest.fixture(scope="module")
def told():
    return on_ranks(RANKS, {job.__name__: job for job in JOBS})


def test_what_one_rank_cannot_store_rolls_all_of_them_back(told):
    for of_rank in told["unstorable"]:
        assert of_rank["used"] == 0 and of_rank["after"] > 0
        for layer, message in enumerate(of_rank["messages"]):
            assert f"rank 1, whose KV head 0 is the model's 3: keys of layer {layer}, KV head 1" in message


def test_a_stream_opens_only_where_all_ranks_have_room(told):
    first, last = told["unequal_pools"]
    assert "too few on another rank" in first["message"] and "are left. Release" not in first["message"]
    assert "0 are left. Release" in last["message"]
    assert first["could_hold"] == last["could_hold"] == (True, False)


def test_wrong_shapes_are_refused_before_anyone_waits(told):
    for rank, messages in enumerate(told["wrong_shapes"]):
        assert all(f"rank {rank} of 2 gives tokens x all heads x head_dim" in message for message in messages)
        assert f"q has shape (25, {HEADS * GROUP}, {HEAD_DIM})" in messages[1]


def test_hosts_that_attend_themselves_store_the_same(told):
    expected = stored_by_hosts_that_attend_themselves(None)
    for image in told["stored_by_hosts_that_attend_themselves"]:
        assert_same_image(image, expected)


def test_codecs_of_one_stream_are_those_of_all_heads(told):
    expected, message = own_codecs_of_a_stream(None)
    for image, refusal in told["own_codecs_of_a_stream"]:
        assert_same_image(image, expected)
        assert refusal == message


def test_compiled_code_attends_through_both(told):
    assert told["compiled"] == [[True, True]] * RANKS


def test_meshes_of_one_axis_are_taken(told):
    for heads, num_ranks, two_axes, no_group in told["meshes"]:
        assert (heads, num_ranks) == (HEADS // RANKS, RANKS)
        assert "a mesh of 2 axes; give the one that shares the heads, such as mesh['heads']" in two_axes
        assert "give a DeviceMesh of one axis or a ProcessGroup" in no_group
