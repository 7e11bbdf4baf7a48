"""The recordings of the original programs (tests/data/hy_worldplay/README.md), and networks with their weights."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pagedvid.models.worldplay.camera import Cameras
from pagedvid.models.worldplay.layers import Sinusoid, slot_rotary
from pagedvid.models.worldplay.memory import MEMORY_8B, MEMORY_WAN, MemoryPolicy
from pagedvid.models.worldplay.network_8b import Network8B
from pagedvid.models.worldplay.network_wan5b import NetworkWan5B
from pagedvid.models.worldplay.spec import Config8B, ConfigWan5B
from pagedvid.models.worldplay.text_8b import TextInputs
from pagedvid.rotary.grid_rotary import GridRotary

FOLDER = Path(__file__).parents[2] / "data" / "hy_worldplay"
VARIANTS = ("hy8b", "wan5b")
TOLERANCE = 1e-4
NUM_CHUNKS = 8
NUM_STEPS = 4
TOKENS_PER_FRAME = 6


@lru_cache
def inputs(variant: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{variant}_inputs.safetensors")


@lru_cache
def calls(variant: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{variant}_calls.safetensors")


@lru_cache
def upstream_config(variant: str) -> dict:
    with safe_open(FOLDER / f"{variant}_weights.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"])


@lru_cache
def network(variant: str) -> Network8B | NetworkWan5B:
    built = Network8B(CONFIG_8B) if variant == "hy8b" else NetworkWan5B(CONFIG_WAN)
    built.load_state_dict(load_file(FOLDER / f"{variant}_weights.safetensors"))
    use_recorded_frequencies(built, variant)
    return built.eval().requires_grad_(False)


def use_recorded_frequencies(built: nn.Module, variant: str) -> None:
    """The last bit of a frequency moves results by up to 7e-5, as timesteps go up to 1000."""
    for module in built.modules():
        if isinstance(module, Sinusoid):
            module.frequencies.copy_(inputs(variant)["sinusoid_freqs"])


CONFIG_8B = Config8B(
    latent_channels=8, width=128, num_heads=2, num_layers=3, mlp_width=256, rope_channels=(8, 28, 28),
    text_channels=20, glyph_channels=12, glyph_hidden=(16, 28), vision_channels=24,
)  # fmt: skip
CONFIG_WAN = ConfigWan5B(latent_channels=4, num_heads=4, head_dim=32, num_layers=3, mlp_width=192, text_channels=20)


def rope(variant: str) -> GridRotary:
    config = CONFIG_8B if variant == "hy8b" else CONFIG_WAN
    return slot_rotary(config.rope_channels, 2, 3, config.rope_theta)


def policy(variant: str) -> MemoryPolicy:
    return MEMORY_8B if variant == "hy8b" else MEMORY_WAN


def cameras(variant: str) -> Cameras:
    return Cameras.of(inputs(variant)["viewmats"][0], inputs(variant)["Ks"][0])


def text_inputs() -> TextInputs:
    x = inputs("hy8b")
    return TextInputs(
        x["prompt_embeds"][0][x["prompt_mask"][0] == 1],
        x["byt5_states"][0][x["byt5_mask"][0] == 1],
        x["vision_states"][0],
    )


def tokens_of(variant: str, latents_CFhw: Tensor) -> Tensor:
    """Grid [C, F, h, w] -> tokens [F, n, C * patch]."""
    if variant == "hy8b":
        return latents_CFhw.flatten(2).permute(1, 2, 0)
    channels, frames = latents_CFhw.shape[:2]
    patches = latents_CFhw.view(channels, frames, 2, 2, 3, 2)  # C F h p w p
    return patches.permute(1, 2, 4, 0, 3, 5).reshape(frames, TOKENS_PER_FRAME, -1)


def call_names() -> list[str]:
    names = []
    for chunk in range(NUM_CHUNKS):
        names += [f"c{chunk:02d}.mem"] if chunk else []
        names += [f"c{chunk:02d}.s{step}" for step in range(NUM_STEPS)]
    return names


def memory_frames(variant: str, chunk: int) -> tuple[int, ...]:
    return tuple(calls(variant)[f"c{chunk:02d}.mem.frames"].tolist()) if chunk else ()


def chunk_frames(chunk: int) -> tuple[int, ...]:
    return tuple(range(4 * chunk, 4 * chunk + 4))


def max_error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


torch.set_num_threads(1)
