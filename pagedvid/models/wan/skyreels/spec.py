"""How SkyReels-V2's diffusion-forcing transformers are run here: block by block, with a history for each branch.

The published pipeline has no cache: it carries a window of 25 latent frames through every step, finished blocks at
timestep 0, and begins the next window with frames that it decodes and encodes again. Here a finished block passes once
at timestep 0, its keys and values stay, and the window slides by blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.errors import ConfigError
from pagedvid.models.wan.base.spec import TransformerShape, WanSettings
from pagedvid.models.wan.base.unipc import FlowUniPC


@dataclass(frozen=True, kw_only=True)
class SkyReelsSettings(WanSettings):
    """The defaults are those of the 1.3B model at 544 x 960 pixels, text to video.

    The window is the 25 latent frames (97 frames) of its training, re-indexed from 0, as its positions never went
    further; the first block stays as a sink.
    """

    name: str = "skyreels-v2-1.3b"
    latent_rows: int = 68
    latent_columns: int = 120
    frames_per_chunk: int = 5
    """`causal_block_size`."""
    fps: float = 24.0
    sink_frames: int = 5
    window_frames: int | None = 25
    positions: str = "window"
    num_denoise_steps: int = 30
    shift: float = 8.0
    """How far noise levels crowd towards noise (`flow_shift`): 8 for text to video."""
    guidance_scale: float = 6.0
    """1: no guidance, and one branch only."""
    negative_prompt: str = ""
    addnoise_condition: int = 20
    """Thousandths of noise that given frames get, and the timestep that the transformer is told of them; 0: none."""
    ar_step: int = 0
    """Denoise steps after which the next block begins, while those before it go on (schedule.py); 0, or as many as a
    block has: when the one before it is clean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("shift", 0.0), ("guidance_scale", 0.0), ("num_denoise_steps", 0)):
            if getattr(self, name) <= least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above {least:g}")
        if self.ar_step < 0:
            raise ConfigError(f"ar_step is {self.ar_step}; it must be at least 0")
        if self.addnoise_condition and self.prefix_level <= 0:
            raise ConfigError(
                f"addnoise_condition is {self.addnoise_condition}; with shift {self.shift:g} it must be 0 or at least "
                f"{self.shift:g}: no step of the sampler has a lower timestep"
            )

    @property
    def branches(self) -> tuple[str, ...]:
        """The histories that a stream keeps."""
        return ("cond",) if self.guidance_scale == 1.0 else ("cond", "uncond")

    @property
    def prefix_level(self) -> float:
        """The noise level of given frames."""
        return FlowUniPC(self.shift).level_of(self.addnoise_condition) if self.addnoise_condition else 0.0

    def noise_levels(self, num_denoise_steps: int) -> tuple[float, ...]:
        """Share of steps still to take before each step, from 1 to 0 (base/unipc.py). Raises ConfigError."""
        if num_denoise_steps < 1:
            raise ConfigError(f"num_denoise_steps is {num_denoise_steps}; it must be at least 1")
        return tuple((num_denoise_steps - step) / num_denoise_steps for step in range(num_denoise_steps + 1))


PUBLISHED: dict[str, tuple[TransformerShape, SkyReelsSettings]] = {
    "skyreels-v2-1.3b": (TransformerShape(num_layers=30, num_heads=12, head_dim=128), SkyReelsSettings()),
    "skyreels-v2-14b": (
        TransformerShape(num_layers=40, num_heads=40, head_dim=128),
        SkyReelsSettings(name="skyreels-v2-14b"),
    ),
}
"""Sizes and settings by model; frames of 544 x 960 pixels, the 720P weights take 720 x 1280."""
