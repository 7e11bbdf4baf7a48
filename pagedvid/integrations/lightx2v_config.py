"""What a LightX2V configuration must say so that its history can be stored in pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagedvid.errors import ConfigError

NAME = "pagedvid"
"""In all three registries."""
CHOSEN = ("self_attn_1_type", "causal_rope_type")
"""Keys of the configuration that must be `NAME`, besides ar_config.kv_cache_scheme."""


def pool_arguments(config: Mapping[str, Any], ar_config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `PagedPool` besides LightX2V's own. Raises ConfigError for what pages cannot do."""
    for key in CHOSEN:
        if config.get(key) != NAME:
            raise ConfigError(f'{key} is {config.get(key)!r}; with kv_cache_scheme "{NAME}" it must be "{NAME}" too')
    for key, reason in (
        ("enable_cfg", "both guidance branches write to one history, so the second would be stored as the clean chunk"),
        ("seq_parallel", "pages hold all heads of a video on one device"),
    ):
        if config.get(key):
            raise ConfigError(f"{key} is on, but {reason}: set it to false")
    if ar_config.get("kv_offload"):
        raise ConfigError("ar_config.kv_offload is on, but pages stay on the device: set it to false")
    frames, frames_per_chunk = int(ar_config.get("sink_size", 0)), int(ar_config.get("num_frame_per_chunk", 3))
    sink_chunks, rest = divmod(frames, frames_per_chunk)
    if rest:
        raise ConfigError(
            f"ar_config.sink_size is {frames} frames; it must be a multiple of num_frame_per_chunk "
            f"({frames_per_chunk}), as chunks are kept and dropped as a whole"
        )
    return {"sink_chunks": sink_chunks}
