"""SGLang's LingBot-World with its history in pages: a plugin of its video engine. The only file that imports SGLang.

    SGLANG_PLUGINS=pagedvid sglang serve ...                   # int2 pages, measured correction

pagedvid names `plugin` as an entry point of the group `sglang.multimodal_gen.plugins`. SGLang loads every plugin that
is installed; this one does nothing unless SGLANG_PLUGINS names it. For other codecs, a plugin of your own calls
`install(StreamCodecs("int4"))`.

Hooks go around three functions of SGLang: the allocation of the cache, the transformer's forward (a step), and its
self-attention. Caches that are not ours pass through. The forward that skips the final projection is the one with the
clean latents: the commit pass. Keys are stored before rotary embedding and rotated when they are read. SGLang's window
counts the chunk being denoised, `Window.recent_chunks` does not:

    num_frames_per_block 3, sliding_window_num_frames 45, sink_size 3   =   Window(sink_chunks=1, recent_chunks=13)

Written for SGLang 0.5.23 (docs/engines.md).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pagedvid.arguments import instance_of
from pagedvid.cache.spec import STREAM_CODECS, CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.errors import ConfigError
from pagedvid.integrations.sglang_history import ChunkGrid, PagedLayer, PagedVideos, window_of

NAME = "pagedvid"
"""Of the entry point."""
VERSION = "0.5.23"
_RUNTIME = "sglang.multimodal_gen.runtime"
_STAGES = f"{_RUNTIME}.pipelines_core.stages.model_specific_stages.lingbot_world.lingbot_world_causal_denoising"
_MODEL = f"{_RUNTIME}.models.dits.lingbot_world"


def plugin() -> None:
    """Called by SGLang when it loads its plugins: `install()`, if SGLANG_PLUGINS names this plugin."""
    from sglang.multimodal_gen.runtime.platforms.plugins import envs

    if NAME in (name.strip() for name in envs.SGLANG_PLUGINS.get().split(",")):
        install()


def install(codecs: StreamCodecs | None = None, *, correction: str | None = None) -> None:
    """Registers the hooks, which SGLang applies when its worker starts.

    `codecs`: how chunks are stored, int2 if None; klt codecs need tables and are not offered here. `correction`: as in
    `CacheSpec`; None: what suits the codecs. Raises ConfigError for another version of SGLang.
    """
    codecs = instance_of(StreamCodecs, "codecs", codecs or StreamCodecs(), STREAM_CODECS, ConfigError)
    try:
        from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType
        from sglang.version import __version__ as found
    except ImportError as error:
        raise ConfigError(f"SGLang's video engine cannot be imported ({error}): install sglang {VERSION}") from error
    if found != VERSION:
        raise ConfigError(f"SGLang is version {found}; this plugin is written for {VERSION}: install that one")
    for target, hook in (
        (
            f"{_STAGES}.LingBotWorldCausalDMDDenoisingStage._allocate_causal_kv_cache",
            PagedAllocation(codecs, correction or codecs.correction),
        ),
        (f"{_MODEL}.CausalLingBotWorldTransformer3DModel.forward", forward_in_a_step),
        (f"{_MODEL}.LingBotWorldCausalSelfAttention.forward", attend),
    ):
        HookRegistry.register(target, hook, HookType.AROUND)


class PagedAllocation:
    """In place of `_allocate_causal_kv_cache`: pages for all layers of a batch."""

    def __init__(self, codecs: StreamCodecs, correction: str) -> None:
        self._codecs, self._correction = codecs, correction

    def __call__(
        self,
        original: Callable[..., Any],
        stage: Any,
        *,
        batch_size: int,
        kv_cache_size: int,
        num_attention_heads: int,
        attention_head_dim: int,
        device: Any,
        sink_tokens: int = 0,
        global_sink_tokens: int = 0,
        attention_window_size: int | None = None,
        allow_growth: bool = False,
        **_: Any,
    ) -> list[PagedLayer]:
        """One `PagedLayer` a layer; sizes in tokens. Raises ConfigError for what pages cannot do."""
        if stage._kv_quant_args.enabled:
            raise ConfigError(
                "SGLang's own KV cache quantization is on; pages are quantized by pagedvid: switch it off"
            )
        if global_sink_tokens or allow_growth or attention_window_size not in (None, kv_cache_size):
            raise ConfigError(
                f"global_sink_tokens {global_sink_tokens}, allow_growth {allow_growth} and attention_window_size "
                f"{attention_window_size} were asked for; pages keep one window of {kv_cache_size} tokens and let all "
                "of it be seen: remove pagedvid from SGLANG_PLUGINS for this model"
            )
        num_layers = stage.num_transformer_blocks
        spec = CacheSpec(
            num_layers, num_attention_heads, attention_head_dim, codecs=self._codecs, correction=self._correction
        )
        chunk_tokens = stage.num_frames_per_block * stage.num_token_per_frame
        window = window_of(kv_cache_size, sink_tokens, chunk_tokens)
        videos = PagedVideos(spec, window, chunk_tokens, batch_size, device)
        return [PagedLayer(videos, i, kv_cache_size, sink_tokens, num_attention_heads) for i in range(num_layers)]


def forward_in_a_step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around the transformer's forward, of latents [B, C, frames, rows, columns] in patches. Raises ConfigError."""
    given = inspect.signature(original).bind(*args, **kwargs)
    given.apply_defaults()
    values = given.arguments
    kv_cache = values["kv_cache"]
    if not kv_cache or not isinstance(kv_cache[0], PagedLayer):
        return original(*args, **kwargs)
    _require_one_device_and_window()
    num_videos, _, *sizes = values["hidden_states"].shape
    grid = ChunkGrid(num_videos, *(size // step for size, step in zip(sizes, values["self"].patch_size, strict=True)))
    chunk = (values["current_start"], values["start_frame"])
    with kv_cache[0].videos.forward(grid, *chunk, commit=values["skip_final_projection"]):
        return original(*args, **kwargs)


def attend(
    original: Callable[..., Tensor],
    attention: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    freqs_cis: tuple[Tensor, ...],
    block_mask: Any,
    kv_cache: Any = None,
    *more: Any,
    **named: Any,
) -> Tensor:
    """Around the self-attention's forward, q, k, v [B, L, H, D] before rotary embedding."""
    if isinstance(kv_cache, PagedLayer):
        return kv_cache.attend(q, k, v, (freqs_cis[0], freqs_cis[1]))
    return original(attention, q, k, v, freqs_cis, block_mask, kv_cache, *more, **named)


def _require_one_device_and_window() -> None:
    from sglang.multimodal_gen.runtime.managers.forward_context import get_forward_context

    request = get_forward_context().forward_batch
    if getattr(request, "enable_sequence_shard", False):
        raise ConfigError("sequence sharding is on; pages hold all tokens and heads of a video: run on one device")
    if getattr(request, "realtime_causal_kv_sample_tokens", None) is not None:
        raise ConfigError(
            "the interactive KV window is on, which lets chunks see less than is kept; pages have one window: run "
            "without interactive_kv_window_enable and SGLANG_LINGBOT_ENABLE_INTERACTIVE_KV_WINDOW"
        )
