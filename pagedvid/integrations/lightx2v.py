"""LightX2V's Self-Forcing models (`wan2.1_sf`, LingBot-World-fast) with their history in pages.

    from pagedvid.integrations.lightx2v import install
    install(StreamCodecs("int2"))               # once, before the model is built

and three entries of the model's configuration:

    "self_attn_1_type": "pagedvid", "causal_rope_type": "pagedvid", "ar_config": {"kv_cache_scheme": "pagedvid", ...}

Keys are stored before rotary embedding and rotated when they are read, so LightX2V's own rotary kernel is not used.
Its window counts the chunk being denoised, `Window.recent_chunks` does not; ar_config is read as it is:

    num_frame_per_chunk 3, local_attn_size 21, sink_size 3   =   Window(sink_chunks=1, recent_chunks=5)

LightX2V is not on PyPI. This is written for ModelTC/LightX2V, revision f8aee98 of 2026-08-21 (docs/engines.md).
"""

from __future__ import annotations

from pagedvid.arguments import instance_of
from pagedvid.cache.spec import STREAM_CODECS
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.errors import ConfigError

VERSION = "0.1.0"
"""What revision f8aee98 calls itself."""
_GET = "git clone https://github.com/ModelTC/LightX2V and check out f8aee98"


def install(codecs: StreamCodecs | None = None, *, correction: str | None = None) -> None:
    """Registers the cache, the attention and the rotary embedding "pagedvid" with LightX2V.

    `codecs`: how chunks are stored, int2 if None; klt codecs need tables and are not offered here. `correction`: as in
    `CacheSpec`; None: what suits the codecs. Another call replaces both, for models that are built later.
    Raises ConfigError if LightX2V cannot be imported or is of another version.
    """
    codecs = instance_of(StreamCodecs, "codecs", codecs or StreamCodecs(), STREAM_CODECS, ConfigError)
    try:
        from pagedvid.integrations.lightx2v_classes import VERSION as found
        from pagedvid.integrations.lightx2v_classes import register
    except ImportError as error:
        raise ConfigError(
            f"LightX2V, or a part of it that is used here, cannot be imported ({error}): {_GET}"
        ) from error
    if found != VERSION:
        raise ConfigError(f"LightX2V is version {found}; this integration is written for {VERSION}: {_GET}")
    register(codecs, correction or codecs.correction)
