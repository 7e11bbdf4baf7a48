"""HY-WorldPlay's published weights. The networks' sizes are read off a checkpoint: from the shapes of its tensors, and
from a `config.json` next to it for what shapes do not tell, if there is one.

Keys of `config.json` that count: `attention_head_dim` (WAN-5B), `rope_dim_list` and `rope_theta` (8B), all three as
published; and `latent_size`, [rows, columns] of a latent frame, to make videos of another resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelSpec
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.files.paths import is_file, is_folder, read_json
from pagedvid.models.common.checkpoint import tensor_shapes
from pagedvid.models.common.checkpoint_files import needed_weights, path_or_none
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.common.network_weights import load_network
from pagedvid.models.common.text_encoder import TextEncoder, t5_encoder
from pagedvid.models.wan.base.text import cleaned
from pagedvid.models.worldplay.memory import MEMORY_8B, MEMORY_WAN
from pagedvid.models.worldplay.network_8b import Network8B
from pagedvid.models.worldplay.network_wan5b import NetworkWan5B
from pagedvid.models.worldplay.pipeline import WorldPlayModel
from pagedvid.models.worldplay.pipeline_8b import WorldPlay8B
from pagedvid.models.worldplay.pipeline_wan5b import TEXT_TOKENS, WorldPlayWan5B
from pagedvid.models.worldplay.schedule import schedule_without_trajectory, timesteps_8b, timesteps_wan
from pagedvid.models.worldplay.spec import LATENT_SIZE_8B, LATENT_SIZE_WAN, Config8B, ConfigWan5B, geometry_of
from pagedvid.shown import named

LARGEST = 1_000_000
"""Of any number in a configuration file."""
Shapes = Mapping[str, tuple[int, ...]]


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. Raises ConfigError."""
    is_8b, path = config.name == "hy-worldplay-8b", path_or_none(config.weights)
    sizes: Config8B | ConfigWan5B = Config8B() if is_8b else ConfigWan5B()
    if path is not None:
        sizes = read_config_8b(path, config.ema) if is_8b else read_config_wan5b(path, config.ema)
    grid = read_grid(path, sizes, LATENT_SIZE_8B if is_8b else LATENT_SIZE_WAN)
    policy, timesteps = (MEMORY_8B, timesteps_8b) if is_8b else (MEMORY_WAN, timesteps_wan)

    def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        return schedule_without_trajectory(policy, num_frames, timesteps(num_denoise_steps))

    def load(prompts: Sequence[str]) -> WorldPlayModel:
        weights = needed_weights(config)
        if config.vae is not None:
            raise ConfigError(
                f"{config.name} has a VAE that decodes whole videos: leave model.vae out, and decode the latents that "
                "come out by `pagedvid decode`"
            )
        encoder = path_or_none(config.text_encoder)
        if is_8b and encoder is not None:
            raise ConfigError(
                f"{config.name} reads three encoders (Qwen2.5-VL, ByT5, SigLIP) that are not run here: leave "
                'model.text_encoder out and give requests their outputs in a file (the input "embeddings")'
            )
        if is_8b:
            return load_8b(weights, config)
        width, rows = sizes.text_channels, map(cleaned, prompts)
        text = t5_encoder(encoder, "umt5", width, config.device_of_text_encoder, rows, TEXT_TOKENS)
        return load_wan5b(weights, config, text)

    return ModelSpec(geometry_of(sizes, grid), schedule, load, writes_latents=True)


def load_8b(path: Path, config: ModelConfig) -> WorldPlay8B:
    """The published checkpoint: a file, an index of shards, or a folder; `config` says where and in which number format
    it is to run. Raises ConfigError."""
    sizes = read_config_8b(path, config.ema)
    grid = read_grid(path, sizes, LATENT_SIZE_8B)
    with torch.device("meta"):
        network = Network8B(sizes).to(getattr(torch, config.dtype))
    load_network(network, network.double_blocks, path, config)
    return WorldPlay8B(network, grid)


def load_wan5b(path: Path, config: ModelConfig, text_encoder: TextEncoder | None = None) -> WorldPlayWan5B:
    """As `load_8b`. `text_encoder`: for requests without embeddings. Raises ConfigError."""
    sizes = read_config_wan5b(path, config.ema)
    grid = read_grid(path, sizes, LATENT_SIZE_WAN)
    with torch.device("meta"):
        network = NetworkWan5B(sizes).to(getattr(torch, config.dtype))
    load_network(network, network.blocks, path, config)
    return WorldPlayWan5B(network, grid, text_encoder=text_encoder)


def read_config_8b(path: Path, prefer_ema: bool = True) -> Config8B:
    """Sizes of an 8B checkpoint (file, index or folder). Raises ConfigError when it is none."""
    shapes, facts = tensor_shapes(path, prefer_ema), _config_file(path)
    try:
        width, input_channels, *patch = shapes["img_in.proj.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn_q_norm.weight"]
        return Config8B(
            latent_channels=(input_channels - 1) // 2,
            patch=(patch[0], patch[1], patch[2]),
            width=width,
            num_heads=width // head_dim,
            num_layers=_num_blocks(shapes, "double_blocks."),
            mlp_width=shapes["double_blocks.0.img_mlp.fc1.weight"][0],
            rope_channels=_rope_channels(facts, head_dim),
            rope_theta=_number(facts, "rope_theta", Config8B.rope_theta),
            text_channels=shapes["txt_in.input_embedder.weight"][1],
            glyph_channels=shapes["byt5_in.fc1.weight"][1],
            glyph_hidden=(shapes["byt5_in.fc1.weight"][0], shapes["byt5_in.fc2.weight"][0]),
            vision_channels=shapes["vision_in.proj.1.weight"][1],
        )
    except ConfigError as error:
        raise ConfigError(f"{named(path)}: {error}") from error
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise _not_a_checkpoint(path, "8B", error) from error


def read_config_wan5b(path: Path, prefer_ema: bool = True) -> ConfigWan5B:
    """Sizes of a WAN-5B checkpoint (file, index or folder). Raises ConfigError when it is none."""
    shapes, facts = tensor_shapes(path, prefer_ema), _config_file(path)
    try:
        width, latent_channels, *patch = shapes["patch_embedding.weight"]
        head_dim = int(_number(facts, "attention_head_dim", ConfigWan5B.head_dim))
        if width % head_dim:
            raise ConfigError(f"it is {width} channels wide, which is no multiple of the head size {head_dim}")
        return ConfigWan5B(
            latent_channels=latent_channels,
            patch=(patch[0], patch[1], patch[2]),
            num_heads=width // head_dim,
            head_dim=head_dim,
            num_layers=_num_blocks(shapes, "blocks."),
            mlp_width=shapes["blocks.0.ffn.net.0.proj.weight"][0],
            text_channels=shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        )
    except ConfigError as error:
        raise ConfigError(f"{named(path)}: {error}") from error
    except (KeyError, ValueError, IndexError) as error:
        raise _not_a_checkpoint(path, "WAN-5B", error) from error


def read_grid(path: Path | None, config: Config8B | ConfigWan5B, default: tuple[int, int]) -> LatentGrid:
    """The latent frames of a checkpoint's videos. Raises ConfigError for a size that the patches do not divide."""
    size = default if path is None else _config_file(path).get("latent_size", default)
    if not isinstance(size, list | tuple) or [type(side) for side in size] != [int, int] or max(size) > LARGEST:
        raise ConfigError(f"latent_size is {size!r}; expected are rows and columns of a latent frame")
    rows, columns = size
    return LatentGrid(config.latent_channels, rows, columns, config.patch[1])


def _rope_channels(facts: Mapping[str, Any], head_dim: int) -> tuple[int, int, int]:
    """Time, row, column; by default in the proportion 2 : 7 : 7 of the published (16, 56, 56)."""
    given = facts.get("rope_dim_list", (head_dim // 8, 7 * head_dim // 16, 7 * head_dim // 16))
    is_triple = isinstance(given, list | tuple) and [type(channels) for channels in given] == [int, int, int]
    if not is_triple or min(given) < 2 or any(channels % 2 for channels in given):
        raise ConfigError(f"rope_dim_list is {given!r}; expected are three even numbers of channels")
    time, row, column = given
    if time + row + column != head_dim:
        raise ConfigError(f"rope_dim_list {list(given)} does not add up to the head size {head_dim}")
    return time, row, column


def _number(facts: Mapping[str, Any], name: str, default: float) -> float:
    """A number of the configuration file that is at least 1."""
    value = facts.get(name, default)
    if type(value) not in (int, float) or not 1 <= value <= LARGEST:
        raise ConfigError(f"{name} is {value!r}; it must be a number from 1 to {LARGEST}")
    return float(value)


def _num_blocks(shapes: Shapes, prefix: str) -> int:
    numbers = {int(name.split(".")[1]) for name in shapes if name.startswith(prefix)}
    return max(numbers) + 1


def _config_file(path: Path) -> dict[str, Any]:
    file = (path if is_folder(path) else path.parent) / "config.json"
    if not is_file(file):
        return {}
    content = read_json(file, "download it again or remove it")
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__}, not a table of settings")
    return content


def _not_a_checkpoint(path: Path, variant: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{named(path)} is not a checkpoint of HY-WorldPlay {variant}: {error} is missing or has another shape"
    )
