"""Tiny HY-WorldPlay models for make_tiny_checkpoint.py: two layers, 3 x 4 tokens.

With the inputs of a request: embeddings.safetensors, and trajectory.json with a walk forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pagedvid.models.worldplay.network_8b import Network8B
from pagedvid.models.worldplay.network_wan5b import NetworkWan5B
from pagedvid.models.worldplay.spec import Config8B, ConfigWan5B

TOKEN_ROWS, TOKEN_COLUMNS = 3, 4
NUM_FRAMES = 32
"""Latent frames of the trajectory."""
FORWARD = 9
"""Action id of a step forward."""

Parts = tuple[nn.Module, dict[str, Any], dict[str, Mapping[str, Any]]]
"""Network, config.json, inputs by file name."""


def tiny_8b(draw: torch.Generator) -> Parts:
    """Two double-stream blocks, two heads of 32."""
    config = Config8B(
        latent_channels=4, width=64, num_heads=2, num_layers=2, mlp_width=96, rope_channels=(4, 14, 14),
        text_channels=12, glyph_channels=10, glyph_hidden=(8, 8), vision_channels=14,
    )  # fmt: skip
    embeddings = {
        "prompt_embeds": _random(draw, 1, 9, config.text_channels),
        "prompt_mask": torch.tensor([[1] * 6 + [0] * 3]),
        "byt5_states": _random(draw, 1, 5, config.glyph_channels),
        "byt5_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "vision_states": _random(draw, 1, 4, config.vision_channels),
        "image_cond": _random(draw, 1, config.latent_channels, 1, TOKEN_ROWS, TOKEN_COLUMNS),
    }
    facts = {"rope_dim_list": list(config.rope_channels), "rope_theta": 256, "latent_size": [TOKEN_ROWS, TOKEN_COLUMNS]}
    return Network8B(config), facts, _inputs(embeddings)


def tiny_wan5b(draw: torch.Generator) -> Parts:
    """Two blocks, two heads of 32."""
    config = ConfigWan5B(latent_channels=4, num_heads=2, head_dim=32, num_layers=2, mlp_width=96, text_channels=12)
    size = [2 * TOKEN_ROWS, 2 * TOKEN_COLUMNS]
    embeddings = {
        "prompt_embeds": _random(draw, 1, 8, config.text_channels),
        "image_latent": _random(draw, 1, config.latent_channels, 1, *size),
    }
    facts = {"attention_head_dim": config.head_dim, "num_attention_heads": config.num_heads, "latent_size": size}
    return NetworkWan5B(config), facts, _inputs(embeddings)


def trajectory(num_frames: int = NUM_FRAMES) -> dict[str, Any]:
    """The trajectory file of a camera that walks forward."""
    frames = []
    for frame in range(num_frames):
        view = torch.eye(4)
        view[2, 3] = -0.1 * frame
        intrinsics = [[1.0, 0.0, 0.5], [0.0, 1.8, 0.5], [0.0, 0.0, 1.0]]
        frames.append({"viewmat": view.tolist(), "K": intrinsics, "action": FORWARD if frame else 0})
    return {"frames": frames}


def _inputs(embeddings: Mapping[str, Tensor]) -> dict[str, Mapping[str, Any]]:
    return {"embeddings.safetensors": embeddings, "trajectory.json": trajectory()}


def _random(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw)
