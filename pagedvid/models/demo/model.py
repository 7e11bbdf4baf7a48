"""The built-in demo model as a `VideoModel`: 32 x 32 frames of one or two coloured shapes, 8 frames at a time.

Latents are the pixels themselves: 8 x 8 patches scaled to -1..1. The network predicts clean latents; a denoise step
is an Euler step of flow matching, x_t = (1 - t) * clean + t * noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pagedvid.engine.protocol import Attend, Decoder, ModelGeometry, Piece
from pagedvid.errors import ConfigError, ShapeError
from pagedvid.files.paths import exists, is_folder, read_json
from pagedvid.models.common.checkpoint import load_checkpoint
from pagedvid.models.common.chunk_by_chunk import ChunkByChunk
from pagedvid.models.demo.captions import read_prompt
from pagedvid.models.demo.latents import GRID_SIZE, TOKENS_PER_FRAME, images_of
from pagedvid.models.demo.transformer import Expectation, Transformer, TransformerConfig, demo_rotary
from pagedvid.models.demo.vocabulary import VOCABULARY
from pagedvid.rotary.grid_rotary import GridRotary
from pagedvid.shown import named

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
LARGEST_SIZE = 10_000
"""Of any number in a config.json."""
_FOLDER = "a folder with config.json and model.safetensors"
LEVEL_SHIFT = 5.0
"""How far noise levels crowd towards pure noise, where place and colour of the thing are decided."""


@dataclass(frozen=True)
class DemoModel(ChunkByChunk):
    """See `VideoModel`; `load` is the usual way to get one."""

    network: Transformer
    rope: GridRotary
    geometry: ModelGeometry
    name: str = "demo"
    frames_per_second: float = 12.0
    positions: str = "window"
    max_window_chunks: int = 6

    @staticmethod
    def of(network: Transformer) -> DemoModel:
        """Wrap a network, trained or not."""
        config = network.config
        rope = demo_rotary(config.head_dim, GRID_SIZE, GRID_SIZE)
        return DemoModel(network.eval().requires_grad_(False), rope, _geometry_of(config))

    @staticmethod
    def load(path: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> DemoModel:
        """Read `config.json` and `model.safetensors` from a folder (default: the shipped weights).

        Raises ConfigError when a file is missing or unreadable or when the two do not fit each other.
        """
        folder = _folder_of(path)
        network = Transformer(_read_config(folder / "config.json"))
        load_checkpoint(network, folder / "model.safetensors")
        return DemoModel.of(network.to(device=device, dtype=dtype))

    def encode_prompt(self, prompt: str) -> Expectation:
        """What the prompt lets the network expect of every chunk."""
        slots = torch.from_numpy(read_prompt(prompt)).to(self.network.places.device)
        return self.network.canvas(slots[None]).of_prompt(0)

    def noise_levels(self, num_denoise_steps: int = 8) -> tuple[float, ...]:
        """Falling levels from 1.0 to 0.0, crowded towards 1.0."""
        if num_denoise_steps < 1:
            raise ConfigError(f"num_denoise_steps is {num_denoise_steps}; it must be at least 1")
        even = [1 - step / num_denoise_steps for step in range(num_denoise_steps + 1)]
        return tuple(LEVEL_SHIFT * level / (1 + (LEVEL_SHIFT - 1) * level) for level in even)

    def initial_noise(self, seed: int, chunk_index: int) -> Tensor:
        """Noise of one chunk, [128, 192], on the network's device; drawn on the CPU, so it is the same everywhere."""
        # A seed sequence, because neighbouring integers as seeds would give related first numbers.
        state = int(np.random.SeedSequence([seed, chunk_index]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state)
        noise = torch.randn(
            self.geometry.chunk_tokens, self.network.config.latent_channels, generator=generator, dtype=torch.float32
        )
        return noise.to(self.network.places)

    def forward(self, latents_TC: Tensor, pieces: Sequence[Piece], attend: Attend) -> Tensor:
        """Clean latents [T, C] of the packed pieces; every piece is one chunk of 128 tokens."""
        size = self.geometry.chunk_tokens
        sizes = [piece.num_tokens for piece in pieces]
        if any(num_tokens != size for num_tokens in sizes) or len(latents_TC) != size * len(pieces):
            raise ShapeError(
                f"pieces of {sizes} tokens for {len(latents_TC)} packed tokens; every piece of this model has {size}"
            )
        levels_N = torch.tensor([piece.noise_level for piece in pieces], dtype=torch.float32, device=latents_TC.device)
        expectation = Expectation.stack([piece.condition for piece in pieces])
        return self.network(latents_TC, levels_N, expectation, attend)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """Latents at the next level: the predicted clean latents plus the noise that is left."""
        clean_TC = predictions["cond"]
        return clean_TC + (next_noise_level / noise_level) * (latents_TC - clean_TC)

    def decoder(self, condition: Expectation) -> Decoder:
        """`decode`: a frame needs nothing of the others."""
        return self.decode

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """Frames of clean latents, uint8 [frames, 32, 32, 3]."""
        images = images_of(latents_TC.float().cpu())
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def read_geometry(path: Path | None = None) -> ModelGeometry:
    """The model's integers from its `config.json` alone (default: the shipped one). Raises ConfigError."""
    return _geometry_of(_read_config(_folder_of(path) / "config.json"))


def _geometry_of(config: TransformerConfig) -> ModelGeometry:
    return ModelGeometry(
        num_layers=config.num_layers,
        num_query_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        tokens_per_frame=TOKENS_PER_FRAME,
        frames_per_chunk=config.chunk_tokens // TOKENS_PER_FRAME,
    )


def save_weights(network: Transformer, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what `DemoModel.load` reads: `model.safetensors` (float16), `config.json` (sizes, vocabulary, facts)."""
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
