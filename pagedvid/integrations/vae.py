"""Latents to frames with the VAEs of the library `diffusers`: whole videos, or chunk by chunk during generation. And
given frames to latents, for videos that go on from them.

The VAEs are causal in time: the first latent frame gives one frame, every further one four. All that Wan's VAE needs of
earlier frames is the last inputs of its convolutions. `VideoVae.stream` keeps these for one video, so that its frames
come out while it is generated; they equal those of a single call. Nothing is ever downloaded.

Axes: F latent frames, C latent channels, R and S rows and columns of the latent grid; N frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.files.paths import read_json
from pagedvid.integrations.diffusers_library import load_pretrained
from pagedvid.integrations.weights_folder import check_after_loading, check_before_loading
from pagedvid.shown import named, shown

STREAMING_CLASS = "AutoencoderKLWan"
CLASSES = (STREAMING_CLASS, "AutoencoderKLHunyuanVideo15")
"""VAEs of Wan 2.1 (self-forcing, skyreels-v2), of Wan 2.2 5B (longlive-2-5b, hy-worldplay-5b) and of HunyuanVideo-1.5
(hy-worldplay-8b)."""
CONVOLUTION = "WanCausalConv3d"
"""The class of Wan's causal convolutions; each has cached inputs, which the library calls features."""


class VideoVae:
    """The VAE of a folder in the layout of diffusers (config.json and weights)."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Loads the weights. Raises ConfigError if the library or files are missing, or for another kind of model."""
        kind = _class_name(folder)
        check_before_loading(folder)
        vae = load_pretrained(kind, folder, "decoding latents", dtype)
        check_after_loading(vae, folder)
        self._encoder, vae.encoder = vae.encoder, None
        self._vae: Any = vae.to(device)
        self._device, self._dtype, self._folder = device, dtype, folder

    @property
    def latent_channels(self) -> int:
        """C, the channels of the latents that it decodes."""
        config = self._vae.config
        return int(config.z_dim if hasattr(config, "z_dim") else config.latent_channels)

    @property
    def frames_per_latent(self) -> int:
        """Frames per latent frame; only the first gives a single frame."""
        config = self._vae.config
        known = (getattr(config, name, None) for name in ("scale_factor_temporal", "temporal_compression_ratio"))
        return next((int(value) for value in known if value is not None), 4)

    @property
    def pixels_per_latent(self) -> int:
        """Rows of pixels per row of latents; the same for columns."""
        return int(self._vae.spatial_compression_ratio)

    @torch.no_grad()
    def decode(self, latents_FCRS: np.ndarray | Tensor) -> np.ndarray:
        """All latents of a video, in the scale of the model that made them -> frames uint8 [N, height, width, 3].

        Raises ConfigError for latents of another model.
        """
        return _pixels(self._vae.decode(self.inputs(latents_FCRS), return_dict=False)[0][0])

    @torch.no_grad()
    def encode(self, frames_NHWC: Tensor) -> Tensor:
        """The first frames of a video, uint8 [N, height, width, 3] -> their latents in the scale of the model, float32
        [F, C, R, S] on the VAE's device, as diffusers' pipelines for images and videos make them (pipeline_wan_i2v.py).

        The encoder is in main memory except in this call. Raises ConfigError for a VAE of HunyuanVideo.
        """
        if not self._is_streaming:
            raise ConfigError(f"the VAE {self._folder} cannot encode given frames; {STREAMING_CLASS} can")
        x = (frames_NHWC.to(self._device).float() / 127.5 - 1).permute(3, 0, 1, 2).unsqueeze(0)
        try:
            self._vae.encoder = self._encoder.to(self._device)
            encoded = self._vae.encode(x.to(self._dtype), return_dict=False)[0].mode()[0].float()
        finally:
            self._vae.encoder = None
            self._encoder.to("cpu")
        mean, std = self._statistics(encoded.device)
        return (encoded.transpose(0, 1) - mean) * (1.0 / std)

    def stream(self) -> VaeStream:
        """A decoder for one new video. Raises ConfigError for a VAE that decodes whole videos only."""
        if not self._is_streaming:
            raise ConfigError(
                f"the VAE {self._folder} decodes whole videos only; {STREAMING_CLASS} decodes chunk by chunk. "
                "Leave model.vae out, and decode the latents that are written with `pagedvid decode`"
            )
        return VaeStream(self, self._vae)

    @property
    def _is_streaming(self) -> bool:
        return type(self._vae).__name__ == STREAMING_CLASS

    def inputs(self, latents_FCRS: np.ndarray | Tensor) -> Tensor:
        """Latents in the scale and layout of the VAE, [1, C, F, R, S]. Raises ConfigError for another model's."""
        latents = torch.as_tensor(latents_FCRS)
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise ConfigError(
                f"the latents have shape {list(latents.shape)}; "
                f"this VAE decodes [frames, {self.latent_channels}, rows, columns]. "
                "Give the VAE of the model that made them."
            )
        scaled = self._unscaled(latents.to(self._device).float()).transpose(0, 1).unsqueeze(0)
        return scaled.to(self._dtype)

    def _unscaled(self, latents_FCRS: Tensor) -> Tensor:
        """Latents in the scale of the VAE: mean and deviation per channel (Wan), or one factor (HunyuanVideo).

        Bit for bit what diffusers' pipelines compute before `vae.decode` (pipeline_wan.py,
        pipeline_hunyuan_video1_5.py).
        """
        config = self._vae.config
        if hasattr(config, "latents_mean"):
            mean, std = self._statistics(latents_FCRS.device)
            return latents_FCRS / (1.0 / std) + mean
        return latents_FCRS / config.scaling_factor

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation of Wan's latents by channel, float32 [1, C, 1, 1]."""
        config = self._vae.config
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std


class VaeStream:
    """Decodes one video with Wan's VAE, chunk by chunk: a call takes the next latent frames and returns their frames.

    Between calls the last inputs of every causal convolution are kept, in main memory even if pages are on a GPU: in
    float32, for a video of any length, 3.8 GB with Wan 2.1 and 480 x 832 pixels, 6.4 GB with Wan 2.2 5B and 704 x 1280.
    If that is too much for the streams that run together, write latents and decode them with `pagedvid decode`. A call
    replaces what is kept and never writes into it.
    """

    def __init__(self, owner: VideoVae, vae: Any) -> None:
        self._owner, self._vae = owner, vae
        convolutions = [module for module in vae.decoder.modules() if type(module).__name__ == CONVOLUTION]
        self._features: list[Any] = [None] * len(convolutions)

    @torch.no_grad()
    def __call__(self, latents_FCRS: np.ndarray | Tensor) -> np.ndarray:
        """The video's next latent frames -> uint8 [N, height, width, 3]. Raises ConfigError for another model's.

        The loop follows `AutoencoderKLWan._decode`, which clears its own features before and after.
        """
        x = self._vae.post_quant_conv(self._owner.inputs(latents_FCRS))
        features = [_moved(feature, x.device) for feature in self._features]
        parts = []
        for frame in range(x.shape[2]):
            is_first = all(feature is None for feature in features)
            how = {"first_chunk": True} if is_first else {}
            parts.append(self._vae.decoder(x[:, :, frame : frame + 1], feat_cache=features, feat_idx=[0], **how))
        self._features = [_moved(feature, "cpu") for feature in features]
        return _pixels(_unpatched(torch.cat(parts, dim=2), self._vae.config.patch_size or 1)[0])

    def state(self) -> dict[str, Tensor]:
        """The features by "feature.{number}", and markers as the bytes of their text, uint8, by "marker.{number}"; a
        convolution that was not used yet has neither."""
        kept = {number: feature for number, feature in enumerate(self._features) if feature is not None}
        return {
            (f"feature.{number}" if isinstance(feature, Tensor) else f"marker.{number}"): _as_tensor(feature)
            for number, feature in kept.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from the `state` of another stream of the same VAE. Raises ConfigError for that of another one."""
        features: list[Any] = [None] * len(self._features)
        for name, tensor in state.items():
            match = re.fullmatch(r"(feature|marker)\.(0|[1-9][0-9]{0,5})", name)
            number = int(match[2]) if match else len(features)
            if match is None or number >= len(features):
                raise ConfigError(
                    f"{shown(name)} is no state of this VAE, whose {len(features)} convolutions have a feature or a "
                    "marker each; restore the video with the VAE that it was made with"
                )
            features[number] = tensor if match[1] == "feature" else bytes(tensor.tolist()).decode()
        self._features = features


def _moved(feature: Any, device: torch.device | str) -> Any:
    """A feature is a tensor; before a convolution's first use, None or a marker of the library."""
    return feature.to(device) if isinstance(feature, Tensor) else feature


def _as_tensor(feature: Any) -> Tensor:
    """A feature as it is; a marker as the bytes of its text."""
    if isinstance(feature, Tensor):
        return feature
    return torch.tensor(list(str(feature).encode()), dtype=torch.uint8)


def _unpatched(x: Tensor, patch: int) -> Tensor:
    """[1, 3 patch patch, N, R, S] -> [1, 3, N, R patch, S patch]; a patch's columns come first (Wan 2.2)."""
    split = x.unflatten(1, (-1, patch, patch))  # 1 c q p N R S
    return split.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def _pixels(video_3NHW: Tensor) -> np.ndarray:
    """[3, N, height, width] in about -1..1, clamped -> uint8 [N, height, width, 3]."""
    pixels = ((video_3NHW.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def _class_name(folder: Path) -> str:
    try:
        kind = read_json(folder / "config.json")["_class_name"]
    except (ConfigError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ConfigError) else repr(error)
        raise ConfigError(
            f"{named(folder)} is not a VAE ({reason}); give the folder `vae` of a model in the layout of diffusers"
        ) from error
    if kind not in CLASSES:
        raise ConfigError(f"{named(folder)} holds a {kind}; allowed are {', '.join(CLASSES)}")
    return str(kind)
