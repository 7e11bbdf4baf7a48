"""A family of models on Wan's transformer, and how a model of it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelGeometry, ModelSpec, VideoModel
from pagedvid.engine.schedule import Schedule
from pagedvid.models.common.checkpoint_files import needed_weights
from pagedvid.models.common.text_encoder import TextEncoder, t5_encoder
from pagedvid.models.wan.base.checkpoint import transformer_config
from pagedvid.models.wan.base.pipeline import LatentDecoder
from pagedvid.models.wan.base.spec import AnySettings, TransformerShape, with_frame_size
from pagedvid.models.wan.base.text import cleaned
from pagedvid.models.wan.base.weights import find_parts, library_config, load_transformer, load_vae, shape_of_config

NewDecoder = Callable[[], LatentDecoder]
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class WanFamily(Generic[AnySettings]):
    """What families differ in."""

    transformer: str
    """Its class in diffusers."""
    make_model: Callable[[Any, AnySettings, TextEncoder | None, NewDecoder | None, Encode | None], VideoModel]
    """(transformer, settings, text, decoder, encode) -> a model; for the arguments see `WanModel`."""
    make_schedule: Callable[[AnySettings, ModelGeometry, int, int | None, Window], Schedule]
    """(settings, geometry, latent frames, denoise steps or None, configured window) -> how a video is worked on."""
    common_prompts: Callable[[AnySettings], tuple[str, ...]] = lambda _: ()
    """Prompts that all videos have besides those of their requests."""
    more_sizes: Callable[[Path, bool], Mapping[str, Any]] = lambda _path, _prefer_ema: {}
    """Arguments of the class that a file in the names of Wan's repository tells besides those of every Wan."""

    def spec(self, config: ModelConfig, shape: TransformerShape, settings: AnySettings) -> ModelSpec:
        """What is known of a model with the published sizes and settings, as far as its weights and the configuration
        say nothing else. Its prompts are encoded before the transformer is loaded. Raises ConfigError."""
        has_vae = config.vae is not None
        if config.weights is not None:
            parts = find_parts(Path(config.weights), config)
            shape, has_vae = shape_of_config(self._sizes(parts.transformer, config.ema)), parts.vae is not None
        sized = with_frame_size(settings, shape, config.height, config.width)
        geometry = shape.geometry(sized, sized.branches)

        def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
            return self.make_schedule(sized, geometry, num_frames, num_denoise_steps, window)

        def load(prompts: Sequence[str]) -> VideoModel:
            return self._load(config, sized, prompts)

        frames = sized.frames if has_vae else None
        return ModelSpec(geometry, schedule, load, writes_latents=not has_vae, frames=frames, takes_frames=has_vae)

    def _load(self, config: ModelConfig, settings: AnySettings, prompts: Sequence[str]) -> VideoModel:
        parts = find_parts(needed_weights(config), config)
        sizes = self._sizes(parts.transformer, config.ema)
        vae = load_vae(parts.vae, sizes["in_channels"], settings.pixels_per_latent, config.device_of_vae)
        rows = map(cleaned, (*prompts, *self.common_prompts(settings)) if prompts else ())
        width, place = sizes["text_dim"], config.device_of_text_encoder
        text = t5_encoder(parts.text_encoder, "umt5", width, place, rows, settings.text_tokens)
        transformer = load_transformer(self.transformer, sizes, parts.transformer, config)
        decoder, encode = (None, None) if vae is None else (vae.stream, vae.encode)
        return self.make_model(transformer, settings, text, decoder, encode)

    def _sizes(self, transformer: Path, prefer_ema: bool) -> Mapping[str, Any]:
        """The arguments of diffusers' class, for weights in either form."""
        sizes = library_config(transformer, self.transformer)
        if sizes is not None:
            return sizes
        return {**transformer_config(transformer, prefer_ema), **self.more_sizes(transformer, prefer_ema)}
