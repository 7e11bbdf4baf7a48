"""Providers: what they pass to a library and what they make of its answer, against attention in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pagedvid.attention.dense.choice import PROVIDERS, create_provider, provider_reasons
from pagedvid.attention.dense.torch_cpu import LARGE_BLOCKS_FROM_ROWS, fold_group, row_parts
from tests.attention.dense import libraries
from tests.attention.dense.libraries import SEEN, dense, tokens

SCALE, HEADS, HEAD_DIM = 0.25, 2, 16
CASES = [
    ("flash-attn-2", libraries.flash_attn_2),
    ("flash-attn-3", libraries.flash_attn_3),
    ("flash-attn-3", libraries.older_flash_attn_3),
    ("flash-attn-4", libraries.flash_attn_4),
    ("torch-cudnn", libraries.torch_cudnn),
    ("torch-cudnn", libraries.older_torch_cudnn),
    ("torch-flash", libraries.torch_flash),
    ("xformers", libraries.xformers),
    ("torch-efficient", libraries.torch_efficient),
    ("torch-cpu", libraries.nothing),
]
every_provider = pytest.mark.parametrize(("name", "library"), CASES, ids=lambda case: getattr(case, "__name__", case))
Library = Callable[[pytest.MonkeyPatch], None]


def check(result: tuple[Tensor, Tensor], q: Tensor, k: Tensor, v: Tensor, atol: float = 1e-5) -> None:
    """Shapes, dtypes and numbers of a canonical partial."""
    out, lse = result
    assert out.shape == q.shape and out.dtype == q.dtype
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32
    expected, expected_lse = dense(q, k, v, SCALE)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)
    torch.testing.assert_close(lse.double(), expected_lse.transpose(1, 2), rtol=0, atol=atol)


@every_provider
@pytest.mark.parametrize(
    ("num_sequences", "num_queries", "num_keys"), [(1, 1, 1), (1, 37, 5), (3, 5, 1), (2, 33, 70)], ids=str
)
@pytest.mark.parametrize("group", [1, 3])
def test_partials_are_canonical(
    monkeypatch, name: str, library: Library, num_sequences: int, num_queries: int, num_keys: int, group: int
) -> None:
    q = tokens((num_sequences, num_queries, HEADS * group, HEAD_DIM), 0)
    k, v = (tokens((num_sequences, num_keys, HEADS, HEAD_DIM), seed) for seed in (1, 2))
    with monkeypatch.context() as patch:
        library(patch)
        result = create_provider(name)(q, k, v, SCALE)
    check(result, q, k, v)


@every_provider
@pytest.mark.parametrize("group", [1, 2])
def test_expanded_queries_and_strided_keys_are_taken_as_they_are(
    monkeypatch, name: str, library: Library, group: int
) -> None:
    """One range's queries over several chunks, which lie head by head in a longer buffer."""
    q = tokens((1, 9, HEADS * group, HEAD_DIM), 0).expand(3, -1, -1, -1)
    k, v = (tokens((3, HEADS, 12, HEAD_DIM), seed).transpose(1, 2)[:, 2:9] for seed in (1, 2))
    SEEN.clear()
    with monkeypatch.context() as patch:
        library(patch)
        result = create_provider(name)(q, k, v, SCALE)
    check(result, q, k, v)
    if name != "torch-cpu":
        [(seen_q, seen_k, seen_v)] = SEEN
        if name == "torch-cudnn":
            assert seen_q.stride(0) == q[0].numel()  # copied: see torch_cudnn.py
        else:
            assert seen_q.data_ptr() == q.data_ptr() and seen_q.stride(0) == 0
        if group == 1 or name not in ("torch-efficient", "xformers"):  # the stand-in of xformers joins the groups
            assert (seen_k.data_ptr(), seen_v.data_ptr()) == (k.data_ptr(), v.data_ptr())


def test_every_provider_is_tested() -> None:
    assert {name for name, _ in CASES} == set(PROVIDERS)


@pytest.mark.parametrize("name", ["torch-cudnn", "torch-flash", "torch-efficient"])
@pytest.mark.parametrize("group", [1, 3])
def test_operators_of_pytorch_take_the_call(name: str, group: int) -> None:
    """The real operators, on tensors without data: their arguments and the shapes of what they return."""
    q = torch.empty((1, 40, HEADS * group, 64), dtype=torch.bfloat16, device="meta").expand(3, -1, -1, -1)
    k, v = (torch.empty((3, HEADS, 50, 64), dtype=torch.bfloat16, device="meta").transpose(1, 2) for _ in range(2))
    out, lse = create_provider(name)(q, k, v, SCALE)
    assert out.shape == q.shape and out.dtype == q.dtype
    assert lse.shape == q.shape[:3] and lse.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_on_the_cpu(dtype: torch.dtype) -> None:
    q = tokens((2, 11, 4, HEAD_DIM), 0, dtype=dtype)
    k, v = (tokens((2, 300, HEADS, HEAD_DIM), seed, dtype=dtype) for seed in (1, 2))
    check(create_provider("torch-cpu")(q, k, v, SCALE), q, k, v, atol=1e-2)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_rows_on_the_cpu_are_cut_for_the_threads(num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        q = tokens((1, 2 * LARGE_BLOCKS_FROM_ROWS, 1, HEAD_DIM), 0)
        k, v = (tokens((1, 40, 1, HEAD_DIM), seed) for seed in (1, 2))
        assert row_parts(q.transpose(1, 2), num_threads) == num_threads
        check(create_provider("torch-cpu")(q, k, v, SCALE), q, k, v)
    finally:
        torch.set_num_threads(before)


def test_groups_are_folded_without_a_copy_where_memory_allows() -> None:
    head_major = tokens((2, 6, 5, HEAD_DIM), 0).transpose(1, 2)
    single = tokens((2, 5, 3, HEAD_DIM), 0)
    expanded = tokens((1, 5, 6, HEAD_DIM), 0).expand(4, -1, -1, -1)
    assert fold_group(head_major, 3).data_ptr() == head_major.data_ptr()
    assert fold_group(single, 1).data_ptr() == single.data_ptr()
    assert fold_group(expanded, 3).stride(0) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("num_keys", [1, 300])
def test_libraries_on_this_device(group: int, num_keys: int) -> None:
    """Whatever can run here, for real."""
    device = torch.device("cuda")
    q = tokens((1, 130, HEADS * group, 128), 0, "cuda", torch.bfloat16).expand(3, -1, -1, -1)
    k, v = (tokens((3, HEADS, num_keys, 128), seed, "cuda", torch.bfloat16).transpose(1, 2) for seed in (1, 2))
    usable = [name for name, why in provider_reasons(device, torch.bfloat16, 128).items() if not why]
    assert usable
    for name in usable:
        for queries in (q, q.contiguous()):
            check(create_provider(name)(queries, k, v, SCALE), queries, k, v, atol=2e-2)
