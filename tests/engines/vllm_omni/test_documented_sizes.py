"""docs/engines.md: what LingBot-World keeps for a session besides its history, as vLLM-Omni's pipeline announces it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan
from vllm_omni.diffusion.models.lingbot_world import pipeline
from vllm_omni.diffusion.models.lingbot_world.pipeline import LingBotWorldCausalDMDPipeline

PAGE = (Path(__file__).parents[3] / "docs" / "engines.md").read_text(encoding="utf-8")
HEIGHT, WIDTH, LAYERS, HEADS, HEAD_DIM = 480, 832, 40, 40, 128


@pytest.fixture(scope="module")
def announced():
    """Of a pipeline with the sizes of the checkpoint and no weights."""
    large = LingBotWorldCausalDMDPipeline.__new__(LingBotWorldCausalDMDPipeline)
    torch.nn.Module.__init__(large)
    with torch.device("meta"):
        large.vae = AutoencoderKLWan().to(torch.bfloat16)
    config = SimpleNamespace(
        patch_size=(1, 2, 2),
        local_attn_size=-1,
        sliding_window_num_frames=18,
        sink_size=9,
        num_frames_per_block=3,
        out_channels=16,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
    )
    block = SimpleNamespace(
        self_attn=SimpleNamespace(num_sp_heads=HEADS), cross_attn=SimpleNamespace(num_local_heads=HEADS)
    )
    large.transformer = SimpleNamespace(config=config, dtype=torch.bfloat16, blocks=[block])
    large.vae_scale_factor_spatial, large.vae_scale_factor_temporal = 8, 4
    large._ar_height, large._ar_width = HEIGHT, WIDTH
    large.od_config = SimpleNamespace(parallel_config=SimpleNamespace(ulysses_degree=1))
    decoder_bytes = int(pipeline._STREAMING_DECODE_BYTES_PER_PIXEL_FP32 * HEIGHT * WIDTH / 2)
    large._streaming_decode_bytes_per_session = lambda: decoder_bytes
    return large.ar_diffusion_kv_cache_spec()


def test_what_a_session_keeps_besides_its_history(announced):
    found = re.search(r"announces ([\d.]+) GiB of its own for each session.*takes ([\d.]+) GiB;", PAGE, re.DOTALL)
    (text,) = announced.cross_attention
    text_bytes = 2 * 2 * LAYERS * text.num_tokens * text.num_kv_heads * HEAD_DIM
    assert found is not None
    assert found[1] == f"{announced.model_owned_state_bytes_per_session / 2**30:.2f}"
    assert found[2] == f"{text_bytes / 2**30:.2f}"


def test_the_sizes_of_its_history(announced):
    sizes = (announced.tokens_per_frame, announced.frames_per_block, announced.window_frames, announced.sink_frames)
    assert sizes == (1560, 3, 9, 9)
    assert "9 sink frames, a window of 9\nframes, blocks of 3" in PAGE
