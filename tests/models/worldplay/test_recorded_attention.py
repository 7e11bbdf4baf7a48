"""One attention of the recordings on its own, without a network: recorded queries, keys, values and memory in, recorded
outputs of both copies out. Rotated tensors are turned back first, since the cache takes them before rotary embedding.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.models.worldplay.camera import CameraProjection
from pagedvid.models.worldplay.schedule import WINDOW
from pagedvid.paged_kv_cache import PagedKVCache
from tests.models.worldplay.dense import map_points, rotate_neighbours
from tests.models.worldplay.recordings import TOLERANCE, calls, cameras, chunk_frames, max_error, memory_frames, rope

CALLS = {"hy8b": ("c07", 7), "wan5b": ("c06", 6)}


def token_major(variant: str, x: Tensor) -> Tensor:
    """[T, H, D] of a recorded tensor of one layer."""
    return x[0] if variant == "hy8b" else x[0].transpose(0, 1)


def memory_of(variant: str, layer: int) -> tuple[Tensor, Tensor]:
    """Rotated keys and plain values of the recorded memory, [T, H, D]."""
    name = f"{CALLS[variant][0]}.mem.block{layer}"
    pair = (calls(variant)[f"{name}.{x}"] for x in "kv")
    k, v = (x[0] if variant == "hy8b" else x[0].chunk(2, dim=-1)[0] for x in pair)
    return k.transpose(0, 1), v.transpose(0, 1)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("variant", CALLS)
def test_both_copies_of_one_recorded_attention(variant, layer):
    prefix, chunk = CALLS[variant]
    recorded = {
        name: token_major(variant, calls(variant)[f"{prefix}.s3.block{layer}.{name}"])
        for name in ("q_rope", "k_rope", "v")
    }
    num_heads, head_dim = recorded["v"].shape[1:]
    memory, own = memory_frames(variant, chunk), chunk_frames(chunk)
    tables, num_stored = rope(variant), 6 * len(memory)
    at_memory, at_own = tables.tables(0, num_stored), tables.tables(num_stored, 24)
    back = {name: rotate_neighbours(recorded[name], at_own[0], -at_own[1]) for name in ("q_rope", "k_rope")}
    memory_k, memory_v = memory_of(variant, layer)
    memory_k = rotate_neighbours(memory_k, at_memory[0], -at_memory[1])
    cache = PagedKVCache(CacheSpec(1, num_heads, head_dim, codecs=StreamCodecs("fp32")), "4MiB")
    stream = cache.open(WINDOW, num_stored)
    projection = CameraProjection(6, tables.layout)
    with cache.commit([QueryRange(stream, num_tokens=num_stored, tag=cameras(variant).select(memory))]) as step:
        step.attend(0, torch.zeros_like(memory_k), memory_k, memory_v, tables, projections=[projection])
    text = (
        [tuple(calls(variant)[f"text.block{layer}.{x}"][0].transpose(0, 1) for x in "kv")] if variant == "hy8b" else ()
    )
    with cache.denoise([QueryRange(stream, num_tokens=24, tag=cameras(variant).select(own))]) as step:
        rotary, projective = step.attend(
            0, back["q_rope"], back["k_rope"], recorded["v"], tables, projections=[projection], context=text
        )
    expected = [
        calls(variant)[f"{prefix}.s3.block{layer}.{name}"][0].reshape(24, num_heads, head_dim)
        if variant == "hy8b"
        else token_major(variant, calls(variant)[f"{prefix}.s3.block{layer}.{name}"])
        for name in ("attn_rope", "attn_prope_raw")
    ]
    assert max_error(rotary, expected[0]) < TOLERANCE / 5
    mapped_back = map_points(expected[1], cameras(variant).select(own).image_from_world())
    assert max_error(projective, mapped_back) < TOLERANCE / 5
