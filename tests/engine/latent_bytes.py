"""Frames that are the latents themselves: four bytes per float32, so that tests see every bit an engine computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pagedvid.engine.requests import ChunkOutput, EngineOutput


def frames_of_latents(latents_TC: Tensor, num_frames: int) -> np.ndarray:
    """[T, C] -> uint8 [num_frames, T / num_frames, 4 C / 3, 3]."""
    tokens_per_frame, channels = len(latents_TC) // num_frames, latents_TC.shape[1]
    return latents_TC.contiguous().numpy().view(np.uint8).reshape(num_frames, tokens_per_frame, 4 * channels // 3, 3)


def latents_of_frames(frames: np.ndarray) -> Tensor:
    """Inverse of `frames_of_latents`, [tokens of all frames, C]."""
    rows = np.ascontiguousarray(frames).reshape(frames.shape[0] * frames.shape[1], -1)
    return torch.from_numpy(rows.view(np.float32).copy())


def video_of(outputs: Sequence[EngineOutput], request_id: str) -> np.ndarray:
    """All frames of one video in the order in which its chunks came out."""
    return np.concatenate([o.frames for o in outputs if isinstance(o, ChunkOutput) and o.request_id == request_id])
