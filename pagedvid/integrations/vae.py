"""Latents to frames by the VAEs of the library `diffusers`. The only file that imports it.

`diffusers` is optional (pip install "pagedvid[vae]"); without it, latents are written as they are. A causal video VAE
decodes whole videos: the first latent frame gives one frame, every further one four. Nothing is ever downloaded.

Axes: F latent frames, C latent channels, R and S rows and columns of the latent grid; N frames.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from pagedvid.errors import ConfigError

CLASSES = ("AutoencoderKLWan", "AutoencoderKLHunyuanVideo15")
"""VAEs of Wan 2.1 and 2.2 (hy-worldplay-5b) and of HunyuanVideo-1.5 (hy-worldplay-8b)."""


class VideoVae:
    """The decoder of a folder in the layout of diffusers (config.json and weights)."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Loads the weights. Raises ConfigError when the library or the files are missing or of another kind."""
        kind = _class_name(folder)
        try:
            import diffusers
        except ImportError as error:
            raise ConfigError(
                f"decoding latents needs the library diffusers ({error}): pip install 'pagedvid[vae]', or keep the "
                "latents and decode them elsewhere"
            ) from error
        if not hasattr(diffusers, kind):
            raise ConfigError(f"diffusers {diffusers.__version__} has no {kind}; install version 0.36 or newer")
        try:
            vae, found = getattr(diffusers, kind).from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"the VAE {folder} cannot be loaded: {error}") from error
        if found["missing_keys"]:
            raise ConfigError(f"the weights in {folder} lack {', '.join(sorted(found['missing_keys']))}")
        self._vae: Any = vae.to(device).eval()
        self._device, self._dtype = device, dtype

    @property
    def latent_channels(self) -> int:
        """C of the latents that it decodes."""
        config = self._vae.config
        return int(config.z_dim if hasattr(config, "z_dim") else config.latent_channels)

    @property
    def frames_per_latent(self) -> int:
        """Frames that a latent frame gives, except for the first, which gives one."""
        config = self._vae.config
        known = (getattr(config, name, None) for name in ("scale_factor_temporal", "temporal_compression_ratio"))
        return next((int(value) for value in known if value is not None), 4)

    @torch.no_grad()
    def decode(self, latents_FCRS: np.ndarray | Tensor) -> np.ndarray:
        """All latents of a video, as the model generated them -> frames uint8 [N, height, width, 3].

        Raises ConfigError for latents of another model.
        """
        latents = torch.as_tensor(latents_FCRS)
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ConfigError(
                f"the latents have shape {list(latents.shape)}; "
                f"this VAE decodes [frames, {self.latent_channels}, rows, columns]. "
                "Give the VAE of the model that made them."
            )
        x = self._unscaled(latents.to(self._device).float()).transpose(0, 1).unsqueeze(0)
        frames = self._vae.decode(x.to(self._dtype), return_dict=False)[0][0]  # [3, N, height, width] in -1..1
        pixels = ((frames.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()

    def _unscaled(self, latents_FCRS: Tensor) -> Tensor:
        """The scale of the VAE: mean and deviation per channel (Wan), or one factor (HunyuanVideo).

        To the last bit as in the pipelines of diffusers: pipeline_wan.py, pipeline_hunyuan_video1_5.py, before
        `vae.decode`.
        """
        config = self._vae.config
        if hasattr(config, "latents_mean"):
            mean, std = (
                torch.tensor(values, device=latents_FCRS.device).view(1, -1, 1, 1)
                for values in (config.latents_mean, config.latents_std)
            )
            return latents_FCRS / (1.0 / std) + mean
        return latents_FCRS / config.scaling_factor


def _class_name(folder: Path) -> str:
    try:
        kind = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} is not a VAE ({error!r}); give the folder `vae` of a model in the layout of diffusers"
        ) from error
    if kind not in CLASSES:
        raise ConfigError(f"{folder} holds a {kind}; allowed are {', '.join(CLASSES)}")
    return str(kind)
