"""What LightX2V finds under the name "pagedvid" in its registries; the only file that imports LightX2V.

Both classes are modules of its weight tree without weights. lightx2v.py imports this file when it is asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightx2v
from lightx2v.common.kvcache.manager import register_self_attn_kv_cache
from lightx2v.common.ops.attn.template import AttnWeightTemplate
from lightx2v.common.ops.rope.template import RopeTemplate
from lightx2v.utils.registry_factory import ATTN_WEIGHT_REGISTER, ROPE_REGISTER
from torch import Tensor

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.errors import ConfigError
from pagedvid.integrations.lightx2v_config import NAME, pool_arguments
from pagedvid.integrations.lightx2v_pool import LastRotary, PagedKeys, PagedPool, RotaryCall

VERSION: str = lightx2v.__version__


_LAST_ROTARY = LastRotary()
"""Of all models of the process: in each layer, the rotary embedding and the attention follow each other."""


def register(codecs: StreamCodecs, correction: str) -> None:
    """Registers the pool, the attention and the rotary embedding, in place of earlier ones of that name."""

    def arguments(config: Mapping[str, Any], ar_config: Mapping[str, Any], kv_quant: Any) -> dict[str, Any]:
        settings = {"codecs": codecs, "correction": correction, "rotary": _LAST_ROTARY}
        return {**pool_arguments(config, ar_config), **settings}

    register_self_attn_kv_cache(NAME, PagedPool, kwargs_builder=arguments)
    ATTN_WEIGHT_REGISTER[NAME] = PagedAttention
    ROPE_REGISTER[NAME] = NotedRope


class PagedAttention(AttnWeightTemplate):  # type: ignore[misc]  # LightX2V is used through Any
    """Attention over the handle that `PagedPool.k_cache` returns."""

    def __init__(self) -> None:
        super().__init__(NAME)

    def apply(self, q: Tensor, k: PagedKeys, v: PagedKeys, **lengths: Any) -> Tensor:
        """q [n, H, D] -> [n, H * D]. Raises ConfigError for keys in a tensor."""
        if not isinstance(k, PagedKeys):
            raise ConfigError(
                f'the attention "{NAME}" was given keys in a {type(k).__name__}; it reads the self-attention cache '
                f'"{NAME}" only: set ar_config.kv_cache_scheme to "{NAME}", leave kv_quant out, and give other '
                "attentions another type"
            )
        return k.history.attend(k, q).flatten(1)


class NotedRope(RopeTemplate):  # type: ignore[misc]  # LightX2V is used through Any
    """Notes where the tokens of a layer are and leaves q and k as they are: `PagedPool.attend` rotates them."""

    def __init__(self, layout: str = "interleaved", compute_dtype: Any = None) -> None:
        super().__init__(layout=layout, compute_dtype=compute_dtype)
        if layout != "interleaved":
            raise ConfigError(f"the rotary layout is {layout!r}; the causal Wan models of LightX2V have 'interleaved'")

    def apply(
        self, q: Tensor, k: Tensor, freqs: Tensor, grid_sizes: Tensor | None = None, start_frame: int = 0, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """q and k [1, n, H, D] unchanged. Raises ConfigError under sequence parallelism, which passes no grid."""
        if grid_sizes is None or len(q) != 1:
            raise ConfigError("pages hold one video on one device: run without seq_parallel, and one video at a time")
        _LAST_ROTARY.call = RotaryCall(freqs, grid_sizes, int(start_frame))
        return q, k
