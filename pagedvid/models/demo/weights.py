"""The demo model's weights, read and written: a folder with config.json and model.safetensors.

The shipped ones are in the folder weights/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import FrameFormat, ModelSpec
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError, listed
from pagedvid.models.common.checkpoint import load_checkpoint
from pagedvid.models.common.checkpoint_files import path_or_none
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk
from pagedvid.models.common.trained_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_config,
    read_sizes,
    require_folder,
    save_folder,
)
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.spec import NUM_DENOISE_STEPS, TransformerConfig, geometry_of, noise_levels
from pagedvid.models.demo.vocabulary import VOCABULARY
from pagedvid.models.demo.world import FRAME_SIZE
from pagedvid.shown import named, shown

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. Raises ConfigError."""
    path = path_or_none(config.weights)
    geometry = geometry_of(_read_config(_folder_of(path) / CONFIG_FILE))

    def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        return chunk_by_chunk(geometry, num_frames, noise_levels(num_denoise_steps or NUM_DENOISE_STEPS), window)

    def load(prompts: Sequence[str]) -> DemoModel:
        if config.text_encoder or config.vae:
            raise ConfigError(
                "the demo model needs neither a text encoder nor a VAE; remove model.text_encoder, model.vae"
            )
        return load_demo(path, config.device, getattr(torch, config.dtype))

    frames = FrameFormat(FRAME_SIZE, FRAME_SIZE, DemoModel.frames_per_second)
    return ModelSpec(
        geometry,
        schedule,
        load,
        writes_latents=False,
        pixel_scale=8,
        frames=frames,
        takes_frames=True,
        example_prompt="a small green circle circling on a navy background",
    )


def load_demo(path: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DemoModel:
    """Reads `config.json` and `model.safetensors` from a folder (default: the shipped weights).

    Raises ConfigError when a file is missing or unreadable or when the two do not fit each other.
    """
    folder = _folder_of(path)
    network = Transformer(_read_config(folder / CONFIG_FILE))
    load_checkpoint(network, folder / WEIGHTS_FILE)
    return DemoModel.of(network.to(device=device, dtype=dtype))


def save_weights(network: Transformer, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes what `load_demo` reads: `model.safetensors` (float16), `config.json` (sizes, vocabulary, facts)."""
    save_folder(network, network.config, folder, facts, vocabulary=list(VOCABULARY))


def _folder_of(path: Path | None) -> Path:
    """The folder of the weights; None: of those shipped. Raises ConfigError when there is none."""
    return require_folder(SHIPPED_WEIGHTS if path is None else Path(path), "demo")


def _read_config(path: Path) -> TransformerConfig:
    config = read_config(path, "demo")
    vocabulary = config.get("vocabulary")
    if not isinstance(vocabulary, list):
        raise ConfigError(f"{named(path)} is not a config of the demo model; export the weights again")
    if tuple(vocabulary) != VOCABULARY:
        differing = sorted(set(map(str, vocabulary)) ^ set(VOCABULARY)) or ["their order"]
        raise ConfigError(
            f"{named(path)}: the vocabulary differs from this version's in {listed([shown(it) for it in differing])}; "
            "train again"
        )
    return read_sizes(config, TransformerConfig, path)
