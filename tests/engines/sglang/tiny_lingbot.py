"""A small LingBot-World of SGLang with random weights, and rollouts of it through SGLang's own stage."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.engines.sglang.on_cpu import lingbot_stages, module

GRID = (2, 8, 8)
"""Frames, rows and columns of tokens of a chunk."""
CHUNK_TOKENS = 128
HEADS, HEAD_DIM, LAYERS = 2, 64, 2
TEXT = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))


def new_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    configs = importlib.import_module("sglang.multimodal_gen.configs.models.dits.lingbot_world")
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM, "num_layers": LAYERS, "ffn_dim": 64}
    widths = {"in_channels": 16, "out_channels": 16, "text_dim": 32, "freq_dim": 16, "image_dim": None}
    frames = {"num_frames_per_block": GRID[0], "sliding_window_num_frames": 10, "sink_size": 2}
    arch = configs.LingBotWorldArchConfig(**sizes, **widths, **frames)
    model = module("models.dits.lingbot_world").CausalLingBotWorldTransformer3DModel(
        configs.LingBotWorldVideoConfig(arch_config=arch), {}
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        if ".to_out." in name or ".to_v." in name:
            spread *= 4  # self-attention is to show in the output
        drawn = torch.randn(parameter.shape, generator=generator) * spread
        parameter.data.copy_(drawn + 1.5 if ".norm_" in name else drawn)
    for part in model.modules():
        if hasattr(part, "forward_native"):
            part._forward_method = part.forward_native
    return model.to(dtype).requires_grad_(False)


def new_stage(model: Any, **settings: Any) -> Any:
    """SGLang's stage of LingBot-World, with what its cache depends on set to the model's own."""
    stages = lingbot_stages()
    stage = stages.LingBotWorldCausalDMDDenoisingStage.__new__(stages.LingBotWorldCausalDMDDenoisingStage)
    arch = model.config
    defaults = {
        "transformer": model,
        "num_transformer_blocks": arch.num_layers,
        "num_frames_per_block": arch.num_frames_per_block,
        "sliding_window_num_frames": arch.sliding_window_num_frames,
        "sink_size": arch.sink_size,
        "local_attn_size": -1,
        "num_token_per_frame": GRID[1] * GRID[2],
        "_kv_quant_args": SimpleNamespace(enabled=False),
    }
    vars(stage).update({**defaults, **settings})
    return stage


def roll_out(stage: Any, num_chunks: int, *, seed: int = 2, num_videos: int = 1, first_chunk: int = 0) -> Tensor:
    """Outputs of all denoise steps [chunks, steps, B, C, frames, height, width], in the stage's present cache.

    Two denoise steps, then the stage's own pass with clean latents. Inputs are drawn, not predicted, so that
    differences of the caches are not amplified from chunk to chunk.
    """
    model, dtype = stage.transformer, next(stage.transformer.parameters()).dtype
    text = TEXT.expand(num_videos, -1, -1).to(dtype)
    outs = []
    for chunk in range(first_chunk, first_chunk + num_chunks):
        generator = torch.Generator().manual_seed(1000 * seed + chunk)
        shape = (3, num_videos, 16, GRID[0], 2 * GRID[1], 2 * GRID[2])
        *noisy, clean = torch.randn(shape, generator=generator).to(dtype)
        start_frame = chunk * GRID[0]
        place = {"start_frame": start_frame}
        caches = {"kv_cache": stage.causal_kv_cache, "crossattn_cache": stage.crossattn_cache}
        for step, latents in enumerate(noisy):
            with module("managers.forward_context").set_forward_context(step, None, forward_batch=request()):
                timestep = torch.full((num_videos, 1), 900 - 400 * step)
                start = start_frame * stage.num_token_per_frame
                outs.append(model(latents, text, timestep, current_start=start, **place, **caches))
        stage._update_causal_context_cache(
            request(),
            SimpleNamespace(pipeline_config=SimpleNamespace(context_noise=0)),
            context_input=clean,
            prompt_embeds=text,
            current_start_tokens=start_frame * stage.num_token_per_frame,
            image_kwargs={},
            pos_cond_kwargs={},
            attn_metadata=None,
            target_dtype=dtype,
            autocast_enabled=False,
            **place,
            **caches,
        )
    return torch.stack(outs).unflatten(0, (num_chunks, -1))


def request() -> Any:
    """What the model reads of a request."""
    return SimpleNamespace(extra={}, session=None, enable_sequence_shard=False, realtime_causal_kv_sample_tokens=None)
