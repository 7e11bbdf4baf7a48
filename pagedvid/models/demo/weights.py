"""The demo model's weights, read and written: a folder with config.json and model.safetensors.

The shipped ones are in the folder weights/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import FrameFormat, ModelSpec
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.files.paths import exists, is_folder, read_json
from pagedvid.models.common.checkpoint import load_checkpoint
from pagedvid.models.common.checkpoint_files import path_or_none
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.models.demo.spec import NUM_DENOISE_STEPS, TransformerConfig, geometry_of, noise_levels
from pagedvid.models.demo.vocabulary import VOCABULARY
from pagedvid.models.demo.world import FRAME_SIZE
from pagedvid.shown import named

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
LARGEST_SIZE = 10_000
"""Of any number in a config.json."""
_FOLDER = "a folder with config.json and model.safetensors"


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. Raises ConfigError."""
    path = path_or_none(config.weights)
    geometry = geometry_of(_read_config(_folder_of(path) / "config.json"))

    def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        return chunk_by_chunk(geometry, num_frames, noise_levels(num_denoise_steps or NUM_DENOISE_STEPS), window)

    def load(prompts: Sequence[str]) -> DemoModel:
        if config.text_encoder or config.vae:
            raise ConfigError(
                "the demo model needs neither a text encoder nor a VAE; remove model.text_encoder, model.vae"
            )
        return load_demo(path, config.device, getattr(torch, config.dtype))

    frames = FrameFormat(FRAME_SIZE, FRAME_SIZE, DemoModel.frames_per_second)
    return ModelSpec(geometry, schedule, load, writes_latents=False, pixel_scale=8, frames=frames)


def load_demo(path: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DemoModel:
    """Reads `config.json` and `model.safetensors` from a folder (default: the shipped weights).

    Raises ConfigError when a file is missing or unreadable or when the two do not fit each other.
    """
    folder = _folder_of(path)
    network = Transformer(_read_config(folder / "config.json"))
    load_checkpoint(network, folder / "model.safetensors")
    return DemoModel.of(network.to(device=device, dtype=dtype))


def save_weights(network: Transformer, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes what `load_demo` reads: `model.safetensors` (float16), `config.json` (sizes, vocabulary, facts)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"architecture": asdict(network.config), "vocabulary": list(VOCABULARY), "training": dict(facts)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _folder_of(path: Path | None) -> Path:
    """The folder of the weights; None: of those shipped. Raises ConfigError when there is none."""
    folder = SHIPPED_WEIGHTS if path is None else Path(path)
    if not is_folder(folder):
        found = "is a file" if exists(folder) else "does not exist"
        raise ConfigError(f"model.weights is {named(folder)}, which {found}; the demo model takes {_FOLDER}")
    return folder


def _read_config(path: Path) -> TransformerConfig:
    config = read_json(path, f"give {_FOLDER}")
    try:
        architecture, vocabulary = dict(config["architecture"]), [str(word) for word in config["vocabulary"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{named(path)} is not a config of the demo model ({error!r}); export the weights again"
        ) from error
    if tuple(vocabulary) != VOCABULARY:
        differing = sorted(set(vocabulary) ^ set(VOCABULARY)) or ["their order"]
        raise ConfigError(f"{path}: the vocabulary differs from this version's in {', '.join(differing)}; train again")
    odd = [name for name, size in architecture.items() if type(size) is not int or not 1 <= size <= LARGEST_SIZE]
    if odd:
        raise ConfigError(
            f"{path}: {odd[0]} is {architecture[odd[0]]!r}; it must be a whole number from 1 to {LARGEST_SIZE}"
        )
    if architecture.get("width", 0) % (2 * architecture.get("num_heads", 1)):
        raise ConfigError(f"{path}: width is {architecture['width']}; it must be a multiple of twice num_heads")
    try:
        return TransformerConfig(**architecture)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}; allowed: {', '.join(TransformerConfig.__dataclass_fields__)}") from error
