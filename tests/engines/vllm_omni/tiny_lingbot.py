"""LingBot-World in vLLM-Omni with a small transformer of random weights: its pipeline, sampler and attention are all
vLLM-Omni's own. Without a text encoder and a VAE: prompts and conditions become random numbers, results are latents."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vllm_omni.diffusion.models.lingbot_world.camera import CameraTrajectory
from vllm_omni.diffusion.models.lingbot_world.pipeline import (
    _PREPROCESSED_CAMERA_KEY,
    LingBotWorldCausalDMDPipeline,
)
from vllm_omni.diffusion.models.lingbot_world.transformer import CausalLingBotWorldTransformer3DModel
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.inputs.data import OmniDiffusionSamplingParams

from pagedvid.integrations.vllm_omni.lingbot import PagedLingBotPipeline

HEIGHT, WIDTH = 128, 256
"""Pixels: 16 x 32 latents, 8 x 16 tokens a frame, 384 tokens a block of 3 frames, which fill int2 pages."""
FRAMES, BLOCK_TOKENS, LAYERS, HEADS, HEAD_DIM = 3, 384, 2, 2, 64
SHAPE = {
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 128,
    "num_layers": LAYERS,
    "sink_size": 3,
    "num_frames_per_block": FRAMES,
    "sliding_window_num_frames": 12,
}
"""One sink block; a window of 3 blocks with the one that is denoised."""


class TinyLingBot(LingBotWorldCausalDMDPipeline):
    """vLLM-Omni's pipeline."""

    def __init__(self, *, od_config: Any, **changes: Any) -> None:
        nn.Module.__init__(self)
        self.od_config, self.device = od_config, torch.device("cpu")
        self.weights_sources: list[Any] = []
        self.transformer = CausalLingBotWorldTransformer3DModel(**{**SHAPE, **od_config.model_config["tiny"]})
        for block in self.transformer.blocks:
            rotate_on_cpu(block.self_attn.rotary_embedding)
        self.scheduler = SimpleNamespace(config=SimpleNamespace(shift=5.0))
        self.vae_scale_factor_temporal, self.vae_scale_factor_spatial = 4, 8
        self._ar_height, self._ar_width = HEIGHT, WIDTH
        self._reuse_last_step_kv = od_config.model_config["lingbot_reuse_last_step_kv"]
        self._ar_diffusion_kv_state = None
        self._ar_sessions: dict[str, Any] = {}
        self._streaming_decode_states: dict[str, Any] = {}

    def load_weights(self, weights: Any) -> set[str]:
        """There is no checkpoint: random ones."""
        fill(self.transformer)
        return {name for name, _ in self.named_parameters()}

    def encode_prompt(self, prompt: str, *, max_sequence_length: int, dtype: torch.dtype) -> Tensor:
        return numbers_of(prompt, 1, max_sequence_length, SHAPE["text_dim"]).to(dtype)

    def _prepare_condition_chunk(self, inputs: Any, *, start_frame: int, dtype: torch.dtype, **_: Any) -> Any:
        condition = numbers_of(f"{inputs.prompt} {start_frame}", 1, 20, FRAMES, HEIGHT // 8, WIDTH // 8)
        return condition.to(dtype), [torch.tensor(start_frame)]

    def _condition_encoder_cache_bytes(self) -> int:
        return 0

    def _streaming_decode_bytes_per_session(self) -> int:
        return 0


class TinyPagedLingBot(PagedLingBotPipeline, TinyLingBot):
    """pagedvid's, with several sessions in one forward."""


def fill(transformer: nn.Module) -> None:
    """Random weights of a size at which attention is neither uniform nor on one token, and every layer matters."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in transformer.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        if name.endswith("self_attn.norm_q.weight"):
            values = 2 + 0.4 * values
        elif name.endswith(("norm_q.weight", "norm_k.weight")):
            values = 1 + 0.2 * values
        elif parameter.ndim == 1:
            values = 0.1 * values
        parameter.data.copy_(values)


def rotate_on_cpu(rotary: Any) -> None:
    """Its kernels take tables [tokens, head_dim / 2]; its own operations in PyTorch want an axis for heads in them."""
    rotary._forward_method = lambda x, cos, sin: rotary.forward_native(x, cos.unsqueeze(1), sin.unsqueeze(1))


def numbers_of(text: str, *shape: int) -> Tensor:
    """Normal numbers that belong to a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def request(request_id: str, num_blocks: int, prompt: str = "a walk along the sea") -> OmniDiffusionRequest:
    """For a rollout of so many blocks, one chunk of latents each."""
    num_frames = (num_blocks * FRAMES - 1) * 4 + 1
    poses = torch.eye(4).repeat(num_frames, 1, 1)
    poses[:, 2, 3] = torch.linspace(0, 1, num_frames)
    camera = CameraTrajectory(poses, torch.tensor([200.0, 200.0, WIDTH / 2, HEIGHT / 2]).repeat(num_frames, 1))
    sampling = OmniDiffusionSamplingParams(
        height=HEIGHT,
        width=WIDTH,
        num_frames=num_frames,
        num_inference_steps=4,
        output_type="latent",
        seed=int(numbers_of(prompt, 1).abs() * 1e6),
        extra_args={_PREPROCESSED_CAMERA_KEY: camera},
    )
    image = torch.zeros(3, HEIGHT, WIDTH)
    return OmniDiffusionRequest({"prompt": prompt, "multi_modal_data": {"image": image}}, sampling, request_id)
