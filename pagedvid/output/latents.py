"""Latent frames <-> one safetensors file, for runs without a VAE.

latents    float32 [C, frames, height, width]
metadata   frames_per_second of the latent frames
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pagedvid.errors import ConfigError
from pagedvid.files import atomic


def read_latents(path: Path) -> tuple[NDArray[np.float32], float]:
    """The latents of a file, [frames, C, height, width], and their frames per second. Raises ConfigError."""
    try:
        with safe_open(path, framework="np") as file:
            latents_CFHW, metadata = file.get_tensor("latents"), file.metadata()
            return latents_CFHW.swapaxes(0, 1), float(metadata["frames_per_second"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} holds no latents of pagedvid ({error}); give a file that generate wrote") from error


class LatentWriter:
    """Collects latent frames until the video is complete; has the methods of `VideoWriter`."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path = path
        self.num_frames = 0
        self._frames_per_second = float(frames_per_second)
        self._chunks: list[NDArray[np.float32]] = []

    def add(self, frames_FCHW: NDArray[np.float32]) -> None:
        """Appends latent frames, float32 [frames, C, height, width]."""
        self._chunks.append(frames_FCHW)
        self.num_frames += len(frames_FCHW)

    def finish(self) -> None:
        """Writes the temporary file. Raises OSError.

        safetensors only serializes: a file that it writes itself is readable by its owner alone whatever the umask is,
        has a temporary name that `remove_stale` does not know, and fails without an errno.
        """
        num_channels, *size = self._chunks[0].shape[1:]
        latents_CFHW = np.empty((num_channels, self.num_frames, *size), np.float32)
        np.concatenate([chunk.swapaxes(0, 1) for chunk in self._chunks], axis=1, out=latents_CFHW)
        self._chunks.clear()
        metadata = {"frames_per_second": repr(self._frames_per_second).removesuffix(".0")}
        atomic.temporary_path(self.path).write_bytes(save({"latents": latents_CFHW}, metadata))

    def publish(self) -> None:
        """Gives the finished file its name. Raises OSError."""
        atomic.publish(self.path)

    def discard(self) -> None:
        """Removes what was written, unless it is published. Never raises."""
        self._chunks.clear()
        atomic.discard(self.path)
