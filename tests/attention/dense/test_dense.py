"""Adapters of attention libraries: conventions at their edge.

The libraries themselves need a GPU. Stand-ins with their call signatures and their conventions of log-sum-exp, written
from the libraries' sources, replace them here: these tests show that an adapter passes what it should and converts
what it gets, not that the library behaves as its stand-in. Tests marked by a CUDA device check that.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid.attention.dense import choice, ragged
from pagedvid.attention.dense.choice import PROVIDERS, choose_provider, create_provider, provider_reasons
from pagedvid.attention.dense.ragged import Ragged
from pagedvid.errors import BackendError

CPU, SCALE = torch.device("cpu"), 0.25
QUERIES, KEYS = (3, 5, 1, 4), (7, 0, 2, 30)
"""Sequences of several lengths; the second sees no key."""


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Plain attention of one sequence: out [m, H, D], lse [m, H]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1).double() for x in (k, v))
    scores = scale * torch.einsum("mhd,nhd->mhn", q.double(), k)
    return torch.einsum("mhn,nhd->mhd", scores.softmax(-1), v), scores.logsumexp(-1)


def packed(q, k, v, cu_seqlens_q, cu_seqlens_k, scale: float, empty: float) -> tuple[Tensor, Tensor]:
    """Packed sequences: out [T, H, D] and lse [H, T] with `empty` where there are no keys."""
    out, lse = torch.zeros_like(q), torch.full((q.shape[1], len(q)), empty)
    bounds = list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True))
    for (q0, k0), (q1, k1) in pairwise(bounds):
        if k1 > k0:
            part, part_lse = dense(q[q0:q1], k[k0:k1], v[k0:k1], scale)
            out[q0:q1], lse[:, q0:q1] = part.to(q.dtype), part_lse.T.float()
        else:
            out[q0:q1] = torch.nan  # undefined in the libraries
    return out, lse


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Replaces the library by a module of that name, and its parents."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:depth]))
        module.__spec__ = ModuleSpec(module.__name__, None, is_package=True)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for key, value in members.items():
        setattr(sys.modules[name], key, value)


def flash_attn_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert (max_seqlen_q, max_seqlen_k, dropout_p, causal) == (max(QUERIES), max(KEYS), 0.0, False)
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        out, lse = packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, torch.inf)
        return (out, lse, None) if return_attn_probs else out

    install(monkeypatch, "flash_attn", flash_attn_varlen_func=flash_attn_varlen_func, __version__="2.8.3")


def flash_attn_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        result = packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, -torch.inf)
        return result if return_attn_probs else result[0]

    install(monkeypatch, "flash_attn_interface", flash_attn_varlen_func=flash_attn_varlen_func)


def older_flash_attn_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False
    ):  # fmt: skip
        return packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, -torch.inf)

    install(monkeypatch, "flash_attn_interface", flash_attn_varlen_func=flash_attn_varlen_func)


def flash_attn_4(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        softmax_scale=None, causal=False, return_lse=False,
    ):  # fmt: skip
        assert return_lse and qv is None
        return packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, -torch.inf)

    install(monkeypatch, "flash_attn.cute", flash_attn_varlen_func=flash_attn_varlen_func)


def xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory_efficient_attention_partial(
        query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
    ):
        """Axes [B, M, groups, heads of a group, D]; lse [B, groups, heads of a group, M]."""
        assert query.dim() == key.dim() == 5 and query.shape[2:] == key.shape[2:] and key.shape[1] > 0
        out, lse = dense(query[0].flatten(1, 2), key[0].flatten(1, 2), value[0].flatten(1, 2), scale)
        return (
            out.unflatten(1, query.shape[2:4]).unsqueeze(0).to(query.dtype),
            lse.float().T.unflatten(0, query.shape[2:4]).unsqueeze(0),
        )

    install(monkeypatch, "xformers.ops.fmha", memory_efficient_attention_partial=memory_efficient_attention_partial)


def torch_flash(monkeypatch: pytest.MonkeyPatch, *, padded: bool = False) -> None:
    def _flash_attention_forward(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None
    ):
        out, lse = packed(query, key, value, cum_seq_q, cum_seq_k, scale, torch.inf)
        if padded:
            rows = lse.split(list(QUERIES), dim=1)
            lse = torch.stack([torch.nn.functional.pad(row, (0, max_q - row.shape[1]), value=7.0) for row in rows])
        return out, lse, None, None, None

    class Operators:
        pass

    Operators._flash_attention_forward = staticmethod(_flash_attention_forward)
    monkeypatch.setattr(torch.ops, "aten", Operators)


def older_torch_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_flash(monkeypatch, padded=True)


def torch_efficient(monkeypatch: pytest.MonkeyPatch) -> None:
    def _scaled_dot_product_efficient_attention(query, key, value, attn_bias, compute_log_sumexp, *, scale=None):
        assert compute_log_sumexp and attn_bias is None and query.shape[1] == key.shape[1]
        out, lse = dense(*(x[0].transpose(0, 1) for x in (query, key, value)), scale)
        rows = torch.nn.functional.pad(lse.T.float(), (0, -len(lse) % 32), value=7.0)
        return out.transpose(0, 1).unsqueeze(0).to(query.dtype), rows.unsqueeze(0), None, None

    class Operators:
        pass

    Operators._scaled_dot_product_efficient_attention = staticmethod(_scaled_dot_product_efficient_attention)
    monkeypatch.setattr(torch.ops, "aten", Operators)


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-cpu is the real thing."""


CASES = [
    ("flash-attn-2", flash_attn_2),
    ("flash-attn-3", flash_attn_3),
    ("flash-attn-3", older_flash_attn_3),
    ("flash-attn-4", flash_attn_4),
    ("xformers", xformers),
    ("torch-flash", torch_flash),
    ("torch-flash", older_torch_flash),
    ("torch-efficient", torch_efficient),
    ("torch-cpu", nothing),
]


@pytest.mark.parametrize(("name", "library"), CASES, ids=lambda case: getattr(case, "__name__", case))
@pytest.mark.parametrize("group", [1, 3])
def test_canonical_partials_of_ragged_sequences(monkeypatch, name: str, library, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(sum(QUERIES), 2 * group, 16, generator=generator)
    k, v = (torch.randn(sum(KEYS), 2, 16, generator=generator) for _ in range(2))
    sequences = Ragged.of(QUERIES, KEYS, CPU)
    expected = [dense(q[a], k[b], v[b], SCALE) for a, b in sequences.slices()]
    with monkeypatch.context() as patch:
        library(patch)
        out, lse = create_provider(name)(q, k, v, sequences, SCALE)
    assert out.shape == q.shape and lse.shape == q.shape[:2] and lse.dtype == torch.float32
    for (queries, keys), (part, part_lse) in zip(sequences.slices(), expected, strict=True):
        if keys.start == keys.stop:
            assert (out[queries] == 0).all() and (lse[queries] == -torch.inf).all()
        else:
            torch.testing.assert_close(out[queries].double(), part, rtol=0, atol=1e-5)
            torch.testing.assert_close(lse[queries].double(), part_lse, rtol=0, atol=1e-5)


def test_the_cpu_has_one_provider_and_reasons_for_the_others() -> None:
    reasons = provider_reasons(CPU, torch.bfloat16, 128)
    assert list(reasons) == list(PROVIDERS)
    assert reasons.pop("torch-cpu") == []
    assert all(any("cuda" in reason for reason in why) for why in reasons.values()), reasons
    assert choose_provider(CPU, torch.float32, 64).name == "torch-cpu"


def test_no_provider_is_an_error_with_all_reasons(monkeypatch) -> None:
    monkeypatch.delitem(choice.PROVIDERS, "torch-cpu")
    with pytest.raises(BackendError, match=r"no library can attend .* xformers: "):
        choose_provider(CPU, torch.float32, 64)


@pytest.mark.parametrize(
    ("capability", "usable"),
    [
        ((7, 5), []),
        ((8, 0), ["flash-attn-2", "torch-flash", "xformers", "torch-efficient"]),
        ((9, 0), ["flash-attn-3", "flash-attn-4", "flash-attn-2", "torch-flash", "xformers", "torch-efficient"]),
        ((10, 0), ["flash-attn-4", "flash-attn-2", "torch-flash", "xformers", "torch-efficient"]),
    ],
)
def test_what_each_device_may_use_in_order(monkeypatch, capability: tuple[int, int], usable: list[str]) -> None:
    """All libraries installed, head_dim 128; the device is made up."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    flash_attn_4(monkeypatch)
    cute = sys.modules["flash_attn.cute"]
    flash_attn_2(monkeypatch)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    flash_attn_3(monkeypatch)
    xformers(monkeypatch)
    reasons = provider_reasons(torch.device("cuda"), torch.bfloat16, 128)
    assert [name for name, why in reasons.items() if not why] == usable, reasons
    in_float32 = provider_reasons(torch.device("cuda"), torch.float32, 128)
    only = [name for name, why in in_float32.items() if not why]
    assert only == (["torch-efficient"] if usable else [])
    assert "float32 activations; it takes bfloat16 and float16" in in_float32["flash-attn-2"]


def test_an_old_or_hollow_flash_attn_is_refused(monkeypatch) -> None:
    """The wheel of version 4 brings a folder `flash_attn` without version 2 in it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    flash_attn_4(monkeypatch)
    reasons = provider_reasons(torch.device("cuda"), torch.bfloat16, 128)
    assert reasons["flash-attn-2"] == ["flash-attn 0.0; it needs 2.6 or newer"]
    assert reasons["flash-attn-4"] == []


def test_missing_names_the_library() -> None:
    assert ragged.missing("no_such_library.inner", "pip install it") == [
        "no_such_library.inner is not installed (pip install it)"
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_libraries_on_this_device() -> None:
    """Whatever can run here, for real."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    q = torch.randn(sum(QUERIES), 6, 128, generator=generator, device=device).bfloat16()
    k, v = (torch.randn(sum(KEYS), 2, 128, generator=generator, device=device).bfloat16() for _ in range(2))
    sequences = Ragged.of(QUERIES, KEYS, device)
    usable = [name for name, why in provider_reasons(device, torch.bfloat16, 128).items() if not why]
    assert usable
    for name in usable:
        out, lse = create_provider(name)(q, k, v, sequences, SCALE)
        for queries, keys in sequences.slices():
            if keys.start == keys.stop:
                assert (out[queries] == 0).all() and (lse[queries] == -torch.inf).all(), name
                continue
            part, part_lse = dense(q[queries], k[keys], v[keys], SCALE)
            torch.testing.assert_close(out[queries].double(), part, rtol=0, atol=2e-2, msg=name)
            torch.testing.assert_close(lse[queries].double(), part_lse, rtol=0, atol=1e-2, msg=name)
