"""The operator that torch.compile sees: same numbers, right shapes, and no break in a compiled graph."""

from __future__ import annotations

import torch

from pagedvid.attention.kernels.operator import paged_attention_operator
from pagedvid.attention.kernels.paged_attention import paged_attention
from pagedvid.attention.kernels.work import PagedWork
from tests.attention.kernels.scenes import Scene


def arguments(scene: Scene, work: PagedWork, q: torch.Tensor) -> tuple:
    bias = scene.bias("step_sizes", rotates=True)
    tables = (work.pages, work.segments, work.ranges, work.blocks)
    angles = scene.angles()
    rotary = (angles.cos, angles.sin, angles.axes, angles.frame_tokens, angles.width)
    settings = (work.group, 0.125, "/".join(scene.codecs), "step_sizes", True, work.tiling.block_rows)
    return (q, scene.records, *tables, *rotary, bias.alpha, None, *settings)


def test_equals_the_launch_and_compiles_whole() -> None:
    scene = Scene(("int4", "int2"), 64, num_kv_heads=1)
    scene.add(70)
    work = scene.work([9], [1], 3)
    q = scene.randn(9, 3, 64)
    out, lse = torch.empty(9, 3, 64), torch.empty(9, 3)
    angles, bias = scene.angles(), scene.bias("step_sizes", rotates=True)
    paged_attention(q, out, lse, scene.records, scene.layouts, work, 0.125, angles=angles, bias=bias)

    def model(q: torch.Tensor) -> torch.Tensor:
        history, log_mass = paged_attention_operator(*arguments(scene, work, 1.0 * q))
        return history * torch.sigmoid(log_mass).unsqueeze(-1)

    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), out * torch.sigmoid(lse).unsqueeze(-1), rtol=0, atol=1e-6)


def test_the_fake_implementation_has_the_shapes_of_the_real_one() -> None:
    scene = Scene(("int2", "int2"), 64, num_kv_heads=2)
    scene.add(20)
    work = scene.work([5], [1], 1)
    q = scene.randn(5, 2, 64)
    torch.library.opcheck(
        paged_attention_operator, arguments(scene, work, q), test_utils=("test_schema", "test_faketensor")
    )
