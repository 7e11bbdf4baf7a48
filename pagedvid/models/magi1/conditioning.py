"""What steers one MAGI-1 video: caption rows of every chunk, and the frames that are given.

A caption file is a safetensors file with

    embeddings   float [L, 4096] or, one caption per chunk, [num_chunks, L, 4096]: rows of a T5-XXL encoder
    mask         [L] or [num_chunks, L]: ones for rows that count, then zeros. Left out: all count;
                 a chunk without any (a given one) gets nothing from cross-attention

and a prefix file is one with `latents`, float [16, frames, height / 8, width / 8], frames of the model's VAE that the
video begins with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.files.tensor_files import read_tensors, refuse_odd_dtype
from pagedvid.models.magi1.spec import FrameConfig, NetworkConfig


@dataclass(frozen=True)
class MagiCondition:
    """One video's steering."""

    captions: tuple[Tensor, ...]
    """Caption tokens [m, X] of each chunk; the last one holds for all later chunks."""
    prefix_TC: Tensor | None = None
    """Latents of the given frames, [tokens, 4 C]."""
    special: tuple[Tensor, ...] = ()
    """Tokens [s, X] in front of a caption by the number of chunks that follow, the last for all larger numbers."""
    num_chunks: int = 0
    """Of the whole video, given ones included."""
    max_tokens: int = 0
    """Most tokens of a caption with special ones."""

    def caption(self, chunk: int) -> Tensor:
        """Caption tokens of a chunk."""
        own = self.captions[min(chunk, len(self.captions) - 1)]
        if not self.special:
            return own
        num_later = max(0, self.num_chunks - 1 - chunk)
        return torch.cat([self.special[min(num_later, len(self.special) - 1)], own])[: self.max_tokens]


def read_captions(source: str | Path | Mapping[str, Tensor], config: NetworkConfig) -> tuple[Tensor, ...]:
    """The rows that count of every caption, each [m, caption channels]. `source`: a file, or its content.

    Raises ConfigError for anything that is not as the module docstring says.
    """
    tensors, name = _read(source, "caption file")
    unknown = sorted(set(tensors) - {"embeddings", "mask"})
    if "embeddings" not in tensors or unknown:
        raise ConfigError(f"{name} holds {', '.join(sorted(tensors)) or 'nothing'}; expected embeddings and mask only")
    rows = tensors["embeddings"]
    rows = rows[None] if rows.ndim == 2 else rows
    if rows.ndim != 3 or rows.shape[2] != config.caption_channels or 0 in rows.shape:
        raise ConfigError(
            f"{name}: embeddings are {list(tensors['embeddings'].shape)}; expected [L, {config.caption_channels}] or "
            f"[num_chunks, L, {config.caption_channels}]"
        )
    if rows.shape[1] > config.caption_max_length:
        raise ConfigError(f"{name}: {rows.shape[1]} caption rows; at most {config.caption_max_length} fit")
    refuse_odd_dtype(rows, f"{name}: embeddings")
    if not bool(torch.isfinite(rows).all()):
        raise ConfigError(f"{name}: embeddings hold NaN or infinity")
    mask = tensors.get("mask", torch.ones(rows.shape[:2], dtype=torch.float32))
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != rows.shape[:2]:
        raise ConfigError(f"{name}: mask is {list(mask.shape)}; expected {list(rows.shape[:2])}, as the embeddings")
    lengths = mask.bool().sum(dim=1).tolist()
    expected = torch.arange(rows.shape[1]) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    if not bool((mask.bool() == expected).all()) or max(lengths) < 1:
        raise ConfigError(f"{name}: a mask must be ones followed by zeros, and not all zeros")
    return tuple(caption[:length].float() for caption, length in zip(rows, lengths, strict=True))


def read_prefix(source: str | Path | Mapping[str, Tensor], network: NetworkConfig, frames: FrameConfig) -> Tensor:
    """Given latents [C, frames, H, W], float32. Raises ConfigError."""
    tensors, name = _read(source, "prefix file")
    latents = tensors.get("latents")
    expected = (network.latent_channels, frames.latent_height, frames.latent_width)
    if latents is None or latents.ndim != 4 or (len(latents), *latents.shape[2:]) != expected or not latents.shape[1]:
        found = "no latents" if latents is None else f"latents of {list(latents.shape)}"
        raise ConfigError(
            f"{name} holds {found}; expected latents [{expected[0]}, frames, {expected[1]}, {expected[2]}]"
        )
    refuse_odd_dtype(latents, f"{name}: latents")
    if not bool(torch.isfinite(latents).all()):
        raise ConfigError(f"{name}: latents hold NaN or infinity")
    return latents.float()


def _read(source: str | Path | Mapping[str, Any], what: str) -> tuple[dict[str, Tensor], str]:
    if isinstance(source, Mapping):
        return dict(source), f"the {what}"
    path = Path(source)
    return read_tensors(path, f"the {what}"), str(path)
