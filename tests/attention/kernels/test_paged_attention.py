"""Attention over pages in one pass, against float64 attention in which every key is corrected by its page's exact b."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pagedvid.attention.kernels.paged_attention import paged_attention
from pagedvid.attention.partial import Partial, merge
from tests.attention.kernels import reference
from tests.attention.kernels.scenes import Scene

EXACT = 1e-5
SECOND_ORDER = 5e-3
"""Cold channels take b to second order, which is off by x^2/30 < 1 % where a query reaches x = 0.5."""


def run(
    scene: Scene,
    lengths: Sequence[int],
    reads: Sequence[int],
    group: int = 1,
    *,
    mode: str | None = "step_sizes",
    angles: bool = True,
    dtype: torch.dtype = torch.float32,
    total: Partial | None = None,
) -> tuple[Partial, Partial]:
    """(what the kernel gives, what it should give) of random queries; `total` is merged into both."""
    heads, scale = group * scene.num_kv_heads, scene.head_dim**-0.5
    q = scene.randn(sum(lengths), heads, scene.head_dim).to(dtype)
    got = Partial(torch.full(q.shape, torch.nan), torch.full(q.shape[:2], torch.nan))
    if total is not None:
        got = Partial(total.out.clone(), total.lse.clone())
    paged_attention(
        q,
        got.out,
        got.lse,
        scene.records,
        scene.layouts,
        scene.work(lengths, reads, group),
        scale,
        angles=scene.angles() if angles else None,
        bias=None if mode is None else scene.bias(mode, rotates=angles),
        merge=total is not None,
    )
    segments, expected = iter(scene.segments), []
    for q_range, count in zip(q.split(list(lengths)), reads, strict=True):
        seen = [next(segments) for _ in range(count)]
        expected.append(_expected(scene, q_range, seen, scale, mode is not None, angles))
    whole = Partial(*(torch.cat(parts).float() for parts in zip(*expected, strict=True)))
    return got, whole if total is None else merge(total, whole)


def _expected(scene, q: Tensor, seen, scale: float, corrected: bool, angles: bool) -> tuple[Tensor, Tensor]:
    if not seen:
        return torch.zeros_like(q), torch.full(q.shape[:2], -torch.inf)
    return reference.paged_attention(
        scene.page, scene.codecs, scene.records, q, seen, scale, corrected=corrected, rotates=angles
    )


def check(pair: tuple[Partial, Partial], tolerance: float) -> None:
    got, expected = pair
    torch.testing.assert_close(got.out, expected.out, rtol=0, atol=tolerance * float(expected.out.abs().max()))
    torch.testing.assert_close(got.lse, expected.lse, rtol=0, atol=tolerance)


@pytest.mark.parametrize("group", [1, 3, 6])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_grouped_queries_over_two_chunks(group: int, head_dim: int) -> None:
    scene = Scene(("int4", "int2"), head_dim, num_kv_heads=2)
    scene.add(130)
    scene.add(17)
    check(run(scene, [5], [2], group), SECOND_ORDER)


@pytest.mark.parametrize(
    "codecs",
    [
        ("int2", "int2"),
        ("int2", "bf16"),
        ("int8", "int2-pair"),
        ("int2-pair-s8", "int4"),
        ("int8", "int8"),
        ("int4-s8", "fp32"),
    ],
)
def test_codecs_of_keys_and_values_may_differ(codecs: tuple[str, str]) -> None:
    scene = Scene(codecs, 64, num_kv_heads=1)
    scene.add(270)
    check(run(scene, [9], [1]), SECOND_ORDER)


@pytest.mark.parametrize("codecs", [("bf16", "bf16"), ("fp32", "int4"), ("bf16", "int2")])
def test_raw_keys_are_not_corrected(codecs: tuple[str, str]) -> None:
    scene = Scene(codecs, 64, num_kv_heads=2)
    scene.add(130)
    check(run(scene, [9], [1]), EXACT)


def test_uncorrected_is_exact() -> None:
    scene = Scene(("int2", "int2"), 64, num_kv_heads=2)
    scene.add(300)
    check(run(scene, [33], [1], mode=None), EXACT)


@pytest.mark.parametrize("num_tokens", [1, 17, 128, 129])
def test_partial_pages(num_tokens: int) -> None:
    scene = Scene(("int2", "int2"), 32, num_kv_heads=1)
    scene.add(num_tokens)
    check(run(scene, [1], [1]), SECOND_ORDER)


@pytest.mark.parametrize("num_tokens", [1560, 4680])
def test_frames_and_chunks_of_more_than_sixteen_pages(num_tokens: int) -> None:
    scene = Scene(("int4", "int2"), 32, num_kv_heads=1)
    scene.add(num_tokens)
    check(run(scene, [5], [1]), SECOND_ORDER)


def test_ragged_ranges_each_with_its_own_chunks() -> None:
    """Ranges with two chunks, none, one; of one token, and of more than a block of rows."""
    scene = Scene(("int2", "int2"), 64, num_kv_heads=2)
    for num_tokens in (140, 17, 1, 40):
        scene.add(num_tokens)
    got, expected = run(scene, [12, 5, 1, 10], [2, 0, 1, 1], group=3)
    check((got, expected), SECOND_ORDER)
    assert (got.out[12:17] == 0).all() and (got.lse[12:17] == -torch.inf).all()


def test_no_history_at_all() -> None:
    got, _ = run(Scene(("int2", "int2"), 64, num_kv_heads=1), [3], [0], mode=None, angles=False)
    assert (got.out == 0).all() and (got.lse == -torch.inf).all()


@pytest.mark.parametrize("angles", [True, False])
def test_hot_channels_take_the_exact_form(angles: bool) -> None:
    """One key channel is 40 times as large: second order would be wrong by whole units, and so would its bfloat16."""
    scene = Scene(("int2", "int2"), 64, num_kv_heads=1, large_channel=40.0)
    scene.add(300, angles=angles)
    got, expected = run(scene, [20], [1], angles=angles)
    check((got, expected), SECOND_ORDER)
    uncorrected, _ = run(scene, [20], [1], mode=None, angles=angles)
    assert (uncorrected.lse - got.lse).max() > 3  # the correction is large here


def test_changes_of_variance_instead_of_step_sizes() -> None:
    scene = Scene(("int2", "int2"), 64, num_kv_heads=2)
    scene.add(130, variance=True)
    scene.add(20, variance=True)
    assert any((segment.variance < 0).any() for segment in scene.segments)
    check(run(scene, [9], [2], mode="variance"), SECOND_ORDER)


def test_keys_stored_after_rotary_embedding_are_corrected_with_plain_squares() -> None:
    scene = Scene(("int2-post", "int2"), 64, num_kv_heads=2)
    scene.add(130, angles=False)
    check(run(scene, [9], [1], angles=False), SECOND_ORDER)


def test_merges_another_partial_in_place() -> None:
    """Its rows without keys are (0, -inf), and the second range reads no chunk: its partial stays what it was."""
    scene = Scene(("int2", "int2"), 64, num_kv_heads=2)
    scene.add(100)
    total = Partial(scene.randn(14, 2, 64), scene.randn(14, 2))
    total.out[:3], total.lse[:3] = 0.0, -torch.inf
    got, expected = run(scene, [9, 5], [1, 0], total=total)
    check((got, expected), SECOND_ORDER)
    torch.testing.assert_close(got.out[9:], total.out[9:])


def test_one_range_does_not_depend_on_its_neighbours() -> None:
    """The same queries over the same pages, alone and in front of another range: equal to the last bit."""
    scene = Scene(("int2", "int2"), 64, num_kv_heads=1)
    scene.add(140)
    scene.add(50)
    q = scene.randn(39, 1, 64)
    results = []
    for lengths, reads in (([9], [1]), ([9, 30], [1, 1])):
        out, lse = torch.empty(sum(lengths), 1, 64), torch.empty(sum(lengths), 1)
        work = scene.work(lengths, reads, 1)
        bias = scene.bias("step_sizes", rotates=True)
        paged_attention(
            q[: sum(lengths)], out, lse, scene.records, scene.layouts, work, 0.125, angles=scene.angles(), bias=bias
        )
        results.append((out[:9], lse[:9]))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_bfloat16_queries() -> None:
    scene = Scene(("int2", "int2"), 64, num_kv_heads=1)
    scene.add(270)
    check(run(scene, [17], [1], group=3, dtype=torch.bfloat16), 3e-2)
