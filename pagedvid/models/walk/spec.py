"""The walk model's integers, the latents of its frames, and its noise levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pagedvid.engine.protocol import ModelGeometry
from pagedvid.models.demo.spec import TransformerConfig, noise_levels
from pagedvid.models.walk.landmarks import CELL_SIZE
from pagedvid.models.walk.world import render

WORLD_VERSION = 2
"""Of maps and landmarks as they are drawn; weights belong to one."""
VIEW_CELLS = 8
"""Height and width of the view in cells; a token is one cell of one frame."""
FRAME_SIZE = VIEW_CELLS * CELL_SIZE
"""Height and width of a frame in pixels."""
TOKENS_PER_FRAME = VIEW_CELLS**2
FRAMES_PER_CHUNK = 2
CHUNK_TOKENS = FRAMES_PER_CHUNK * TOKENS_PER_FRAME
LATENT_CHANNELS = 3 * CELL_SIZE**2
NUM_DENOISE_STEPS = 8
"""Of a chunk, unless settings say otherwise."""
LEVEL_SHIFT = 2.0
"""Of the noise levels of these steps; training spreads levels wider. What a new cell becomes is decided halfway, so
that steps crowded at loud levels lead to fewer landmarks than maps have."""
FRAMES_PER_SECOND = 6.0


def geometry_of(config: TransformerConfig) -> ModelGeometry:
    """Of the walk model with a network of these sizes."""
    return config.geometry(TOKENS_PER_FRAME, FRAMES_PER_CHUNK)


def levels_of(num_denoise_steps: int | None) -> tuple[float, ...]:
    """Falling noise levels from 1.0 to 0.0; None: of the model's own number of steps. Raises ConfigError."""
    return noise_levels(NUM_DENOISE_STEPS if num_denoise_steps is None else num_denoise_steps, LEVEL_SHIFT)


def cells_of(image: np.ndarray) -> np.ndarray:
    """Latents of the cells of an image: uint8 [R * 8, C * 8, 3] -> float32 [R, C, 192] in -1 .. 1."""
    rows, columns = image.shape[0] // CELL_SIZE, image.shape[1] // CELL_SIZE
    cut = image.reshape(rows, CELL_SIZE, columns, CELL_SIZE, 3).swapaxes(1, 2)
    return cut.reshape(rows, columns, LATENT_CHANNELS).astype(np.float32) / 127.5 - 1


def map_latents(map_seed: int, places_F2: np.ndarray) -> np.ndarray:
    """Latents of what a map shows at the places of some frames, float32 [F * 64, 192]."""
    views = [cells_of(render(map_seed, row, column, VIEW_CELLS, VIEW_CELLS)) for row, column in places_F2.tolist()]
    return np.concatenate([view.reshape(TOKENS_PER_FRAME, LATENT_CHANNELS) for view in views])


def frame_latents(frames_NHWC: Tensor) -> Tensor:
    """Latents of frames uint8 [N, 64, 64, 3], float32 [N * 64, 192]; `frames_of` gives the same frames again."""
    cells = np.stack([cells_of(frame) for frame in frames_NHWC.numpy()])
    return torch.from_numpy(cells.reshape(-1, LATENT_CHANNELS))


def frames_of(latents_TC: Tensor) -> np.ndarray:
    """Frames of latents [F * 64, 192]: uint8 [F, 64, 64, 3]."""
    cut = latents_TC.float().cpu().view(-1, VIEW_CELLS, VIEW_CELLS, CELL_SIZE, CELL_SIZE, 3).transpose(2, 3)
    images = cut.reshape(-1, FRAME_SIZE, FRAME_SIZE, 3)
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
