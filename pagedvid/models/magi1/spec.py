"""Sizes and settings of MAGI-1: the network, the frames, the sampler; the published ones by name.

Field names are those of the configuration files that SandAI publishes (example/4.5B/4.5B_config.json and its siblings,
sections model_config, runtime_config, engine_config), so such a file next to the weights is read as it is (weights.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pagedvid.engine.protocol import ModelGeometry
from pagedvid.errors import ConfigError

PATCH = 2
"""Rows and columns of latents in a token; a token lasts one latent frame."""
NUM_GROUPS_OUT = 8
"""Blocks in which outputs of self- and cross-attention alternate before the output projection, in all sizes."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the transformer."""

    num_layers: int = 34
    hidden_size: int = 3072
    ffn_hidden_size: int = 12288
    num_attention_heads: int = 24
    num_query_groups: int = 8
    """KV heads."""
    kv_channels: int = 128
    """Channels of a head."""
    gated_linear_unit: bool = False
    """Whether to use SwiGLU instead of GELU."""
    half_channel_vae: bool = False
    """Whether the network sees every latent channel twice."""
    x_rescale_factor: float = 1.0
    in_channels: int = 16
    """Input channels of the network, and its output channels."""
    caption_channels: int = 4096
    caption_max_length: int = 800
    cond_hidden_ratio: float = 0.25
    xattn_cond_hidden_ratio: float = 1.0
    layernorm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        heads, groups, width = self.num_attention_heads, self.num_query_groups, self.kv_channels
        if min(heads, groups, width, self.num_layers) < 1:
            raise ConfigError(
                f"num_layers is {self.num_layers}, num_attention_heads {heads}, num_query_groups {groups}, kv_channels "
                f"{width}; all must be at least 1"
            )
        if heads % groups or heads * width != self.hidden_size or width % 8 or self.hidden_size % NUM_GROUPS_OUT:
            raise ConfigError(
                f"{heads} heads of {width} channels over {groups} query groups do not make hidden_size "
                f"{self.hidden_size}: heads x channels must equal it, groups must divide the heads, 8 the channels"
            )

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels

    @property
    def condition_size(self) -> int:
        """Width of the time and text condition."""
        return int(self.hidden_size * self.cond_hidden_ratio)

    @property
    def caption_size(self) -> int:
        """Width of the caption tokens that cross-attention reads."""
        return int(self.hidden_size * self.xattn_cond_hidden_ratio)


@dataclass(frozen=True)
class FrameConfig:
    """The latent frames of a video."""

    latent_height: int = 90
    latent_width: int = 90
    chunk_width: int = 6
    """Latent frames of a chunk."""
    fps: float = 24.0
    temporal_downsample_factor: int = 4
    """Pixel frames of a latent frame."""

    def __post_init__(self) -> None:
        for side in ("latent_height", "latent_width"):
            size = getattr(self, side)
            if size % PATCH or size < 2 * PATCH:
                raise ConfigError(
                    f"{side} is {size}; it must be even and at least {2 * PATCH} (an eighth of the pixels)"
                )
        if self.chunk_width < 1:
            raise ConfigError(f"chunk_width is {self.chunk_width}; it must be at least 1 latent frame")

    @property
    def rows(self) -> int:
        """Token rows of a frame."""
        return self.latent_height // PATCH

    @property
    def columns(self) -> int:
        """Token columns of a frame."""
        return self.latent_width // PATCH

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a latent frame."""
        return self.rows * self.columns


@dataclass(frozen=True)
class SamplingConfig:
    """The schedule and the guidance."""

    window_size: int = 4
    """Chunks in flight."""
    num_steps: int = 32
    """Denoise steps unless the engine's setting says otherwise."""
    noise2clean_kvrange: tuple[int, ...] = (5, 4, 3, 2)
    """Chunks that a chunk sees, itself included, in each quarter of its denoising."""
    clean_chunk_kvrange: int = 1
    """The same for the pass that makes a finished chunk's clean keys and values."""
    clean_t: float = 0.9999
    """Time of that pass."""
    cfg_number: int = 3
    """1: one forward a step. 3: prompt and history, history only, neither."""
    cfg_t_range: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_chunk_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)
    distill: bool = False
    """Whether the network is told the length of its steps."""
    distill_nearly_clean_chunk_threshold: float = 0.3
    """With one forward a step: from this time on the first chunk in flight runs a second time, seeing only itself."""
    shortcut_mode: str = "8,16,16"
    """Which twelve of sixteen steps are taken when there are 12 of them."""

    def __post_init__(self) -> None:
        if self.cfg_number not in (1, 3):
            raise ConfigError(f"cfg_number is {self.cfg_number}; allowed are 1 and 3")
        if self.shortcut_mode not in ("8,16,16", "16,16,8"):
            raise ConfigError(f"shortcut_mode is {self.shortcut_mode!r}; allowed are '8,16,16' and '16,16,8'")
        if self.window_size < 1 or len(self.noise2clean_kvrange) != 4 or min(self.noise2clean_kvrange) < 1:
            raise ConfigError(
                f"window_size is {self.window_size} (at least 1) and noise2clean_kvrange {self.noise2clean_kvrange} "
                "(four numbers of at least 1)"
            )
        if self.clean_chunk_kvrange < 1:
            raise ConfigError(f"clean_chunk_kvrange is {self.clean_chunk_kvrange}; it must be at least 1 (itself)")


@dataclass(frozen=True)
class MagiConfig:
    """Everything about one MAGI-1."""

    name: str
    network: NetworkConfig = field(default_factory=NetworkConfig)
    frames: FrameConfig = field(default_factory=FrameConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


_SMALL = MagiConfig("magi-1-4.5b")
_LARGE = MagiConfig(
    "magi-1-24b",
    NetworkConfig(
        num_layers=48,
        hidden_size=6144,
        ffn_hidden_size=16384,
        num_attention_heads=48,
        gated_linear_unit=True,
        half_channel_vae=True,
        x_rescale_factor=0.1,
        in_channels=32,
    ),
    FrameConfig(latent_height=90, latent_width=160),
)
_DISTILLED = SamplingConfig(cfg_number=1, distill=True, num_steps=8)

PUBLISHED = {
    config.name: config
    for config in (
        _SMALL,
        replace(_SMALL, name="magi-1-4.5b-distill", sampling=_DISTILLED),
        _LARGE,
        replace(_LARGE, name="magi-1-24b-distill", sampling=_DISTILLED),
    )
}
"""The published sizes, base and distilled."""


def geometry_of(config: MagiConfig) -> ModelGeometry:
    """The integers that memory depends on. All forwards of a video share one cache branch."""
    return ModelGeometry(
        num_layers=config.network.num_layers,
        num_query_heads=config.network.num_attention_heads,
        num_kv_heads=config.network.num_query_groups,
        head_dim=config.network.kv_channels,
        tokens_per_frame=config.frames.tokens_per_frame,
        frames_per_chunk=config.frames.chunk_width,
    )
