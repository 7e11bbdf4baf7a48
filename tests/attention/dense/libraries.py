"""Stand-ins for attention libraries that need a GPU: their call signatures and conventions, from their sources.

They show that a provider passes what it should and converts what it gets, not that the library behaves as its
stand-in; tests marked by a CUDA device show that. Signatures were read in flash-attn 2.8.3 (`flash_attn_func`),
flash-attention's hopper/ and flash_attn/cute at 0251105a, xformers 0.0.35 and PyTorch 2.13.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

SEEN: list[tuple[Tensor, Tensor, Tensor]] = []
"""Queries, keys and values as they reached a library, by call."""


def tokens(shape: tuple[int, ...], seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Plain attention in float64, [B, M, H, D]: out [B, M, H, D], lse [B, H, M]."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.double().repeat_interleave(group, dim=2) for x in (k, v))
    scores = scale * torch.einsum("bmhd,bnhd->bhmn", q.double(), k)
    return torch.einsum("bhmn,bnhd->bmhd", scores.softmax(-1), v), scores.logsumexp(-1)


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same, seen, as a library returns it: out like q, lse float32."""
    SEEN.append((q, k, v))
    out, lse = dense(q, k, v, scale)
    return out.to(q.dtype), lse.float()


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
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        assert (dropout_p, causal) == (0.0, False)
        out, lse = attended(q, k, v, softmax_scale)
        return (out, lse, None) if return_attn_probs else out

    install(monkeypatch, "flash_attn", flash_attn_func=flash_attn_func, __version__="2.8.3")


def flash_attn_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        assert not causal and q.dtype == k.dtype == v.dtype
        if q.dtype == torch.float8_e4m3fn:
            shape = (q.shape[0], k.shape[2])
            assert all(x.shape == shape and x.dtype == torch.float32 for x in (q_descale, k_descale, v_descale))
            group = q.shape[2] // k.shape[2]
            q = q.float() * q_descale.repeat_interleave(group, dim=1)[:, None, :, None]
            k, v = (x.float() * scales[:, None, :, None] for x, scales in ((k, k_descale), (v, v_descale)))
            out, lse = attended(q.bfloat16(), k, v, softmax_scale)
        else:
            assert q_descale is k_descale is v_descale is None
            out, lse = attended(q, k, v, softmax_scale)
        return (out, lse) if return_attn_probs else out

    install(monkeypatch, "flash_attn_interface", flash_attn_func=flash_attn_func)


def older_flash_attn_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
        return attended(q, k, v, softmax_scale)

    install(monkeypatch, "flash_attn_interface", flash_attn_func=flash_attn_func)


def flash_attn_4(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_func(
        q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None,
        score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None,
        block_sparse_tensors_bwd=None, return_lse=False,
    ):  # fmt: skip
        assert qv is None and not causal
        out, lse = attended(q, k, v, softmax_scale)
        return out, lse if return_lse else None

    install(monkeypatch, "flash_attn.cute", flash_attn_func=flash_attn_func)


def xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory_efficient_attention_partial(
        query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
    ):
        """Axes [B, M, groups, heads of a group, D]; lse [B, groups, heads of a group, M or more]; out float32."""
        assert query.dim() == key.dim() == 5 and query.shape[2:] == key.shape[2:]
        out, lse = attended(*(x.flatten(2, 3) for x in (query, key, value)), scale)
        lse = torch.nn.functional.pad(lse, (0, 5), value=7.0)
        return out.unflatten(2, query.shape[2:4]).float(), lse.unflatten(1, query.shape[2:4])

    install(monkeypatch, "xformers.ops.fmha", memory_efficient_attention_partial=memory_efficient_attention_partial)


def torch_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    def _flash_attention_forward(
        query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None
    ):
        assert cum_seq_q is cum_seq_k is None and (max_q, max_k) == (query.shape[1], key.shape[1])
        assert (dropout_p, is_causal, return_debug_mask) == (0.0, False, False)
        return *attended(query, key, value, scale), None, None, None

    _operator(monkeypatch, _flash_attention_forward)


def torch_efficient(monkeypatch: pytest.MonkeyPatch) -> None:
    def _scaled_dot_product_efficient_attention(query, key, value, attn_bias, compute_log_sumexp, *, scale=None):
        assert compute_log_sumexp and attn_bias is None and query.shape[1] == key.shape[1]
        out, lse = attended(*(x.transpose(1, 2) for x in (query, key, value)), scale)
        return out.transpose(1, 2), torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32), value=7.0), None, None

    _operator(monkeypatch, _scaled_dot_product_efficient_attention)


def torch_cudnn(monkeypatch: pytest.MonkeyPatch, *, lse_dims: int = 4) -> None:
    def _scaled_dot_product_cudnn_attention(query, key, value, attn_bias, compute_log_sumexp, *, scale=None):
        assert compute_log_sumexp and attn_bias is None
        assert key.shape[2] > 1, "cudnn SDPA does not support key/value sequence length 1"
        assert 0 not in query.stride()
        out, lse = attended(*(x.transpose(1, 2) for x in (query, key, value)), scale)
        return out.transpose(1, 2), lse.unsqueeze(3) if lse_dims == 4 else lse, *[None] * 7

    _operator(monkeypatch, _scaled_dot_product_cudnn_attention)


def older_torch_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_cudnn(monkeypatch, lse_dims=3)


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what runs here."""


def _operator(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    class Operators:
        pass

    setattr(Operators, function.__name__, staticmethod(function))
    monkeypatch.setattr(torch.ops, "aten", Operators)
