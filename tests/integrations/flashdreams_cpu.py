"""flashdreams on the CPU: plain torch for its two CUDA-only pieces, and small Wan networks of random weights."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

NUM_TEXT_TOKENS, TEXT_DIM = 5, 8
LATENT_CHANNELS = 4


def plain_rotation(x: Tensor, freqs: Tensor, interleaved: bool = False, inplace: bool = False) -> Tensor:
    """What its Triton kernel computes: x [B, S, H, D] rotated by freqs [S, 1, 1, D], in place."""
    assert interleaved and inplace
    angles = freqs[:, 0, 0, ::2]
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x[..., ::2].clone(), x[..., 1::2].clone()
    x[..., ::2] = first * cos - second * sin
    x[..., 1::2] = second * cos + first * sin
    return x


def plain_attention(q: Tensor, k: Tensor, v: Tensor, return_lse: bool = False) -> tuple[Tensor, None]:
    """In place of cuDNN's attention, which is asked for no log-sum-exp here."""
    assert not return_lse
    return torch.nn.functional.scaled_dot_product_attention(q, k, v), None


@cache
def library(module: str) -> Any:
    """A module of flashdreams, with the two substitutes."""
    kernel = ModuleType("flashdreams.core.attention.rope_kernel")
    kernel.apply_rotary_pos_emb = plain_rotation  # type: ignore[attr-defined]
    sys.modules[kernel.__name__] = kernel  # it imports triton, which PyTorch for the CPU does not bring along
    importlib.import_module("flashdreams.core.attention.cp").torch_sdpa_cudnn = plain_attention  # type: ignore[attr-defined]
    return importlib.import_module(f"flashdreams.{module}")


def wan_config(head_dim: int = 12, relative_rope: bool = False, **settings: Any) -> Any:
    """Chunks of 2 frames; 2 heads, 3 layers."""
    wan21 = library("recipes.wan.transformer.wan21")
    network = wan21.WanDiTNetworkConfig(
        text_len=NUM_TEXT_TOKENS,
        text_dim=TEXT_DIM,
        in_dim=LATENT_CHANNELS,
        out_dim=LATENT_CHANNELS,
        dim=2 * head_dim,
        ffn_dim=32,
        freq_dim=16,
        num_heads=2,
        num_layers=3,
        apply_rope_before_kvcache=not relative_rope,
    )
    small = {"dtype": torch.float32, "len_t": 2, "window_size_t": 6, "compile_network": False, "use_cuda_graph": False}
    return wan21.Wan21TransformerConfig(network=network, **(small | settings))


def set_up(config: Any, seed: int = 0) -> Any:
    """The transformer of a configuration, its weights drawn from a seed.

    The library's initial weights would leave attention nearly uniform and modulation nearly off.
    """
    transformer = config.setup()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        is_norm = ".norm_" in name
        spread = 0.3 if is_norm or parameter.dim() < 2 else 1.5 * parameter.shape[-1] ** -0.5
        drawn = (torch.randn(parameter.shape, generator=generator) * spread).to(parameter.dtype)
        parameter.data.copy_(drawn + 1.5 if is_norm else drawn)
    return transformer.requires_grad_(False)


def open_rollout(transformer: Any, height: int, width: int, num_videos: int = 1, seed: int = 1) -> Any:
    """Its autoregressive cache for latents of height x width, with random text embeddings (negative ones for CFG)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(num_videos, NUM_TEXT_TOKENS, TEXT_DIM, generator=generator).to(transformer.dtype)  # noqa: E731
    text, negative = draw(), draw()
    guided = getattr(transformer.config, "guidance_scale", 1.0) > 1.0
    extra = {"negative_text_embeddings": negative} if guided else {}
    return transformer.initialize_autoregressive_cache(height=height, width=width, text_embeddings=text, **extra)


def roll_out(transformer: Any, rollout: Any, num_chunks: int, first_chunk: int = 0, seed: int = 2) -> Tensor:
    """Every forward's flow, [chunks, forwards, B, L, C]: two denoise steps, then `finalize_kv_cache`, per chunk.

    Latents are drawn, not predicted, so that differences of the caches are not amplified from chunk to chunk.
    """
    flows: list[Tensor] = []
    per_token = transformer.latent_shape[:-1]
    for chunk in range(first_chunk, first_chunk + num_chunks):
        generator = torch.Generator().manual_seed(1000 * seed + chunk)
        rollout.start(chunk)
        for step in (900.0, 400.0, 0.0):
            latent = torch.randn(transformer.latent_shape, generator=generator).to(transformer.dtype)
            # With one timestep for all tokens, flashdreams 0.1 runs a single video only.
            timestep = torch.tensor(step) if per_token[0] == 1 else torch.full(per_token, step)
            if step:
                flows.append(transformer.predict_flow(latent, timestep, rollout))
            else:
                transformer.finalize_kv_cache(latent, timestep, rollout)
        rollout.finalize(chunk)
    return torch.stack(flows).unflatten(0, (num_chunks, -1))
