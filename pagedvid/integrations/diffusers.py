"""Self-attention of diffusers' Wan transformers through pagedvid, for Wan 2.1, Wan 2.2 5B and SkyReels-V2.

    paged = install(transformer)                       # cross-attention keeps the library's processors
    rope = paged.rope(rows, columns)                   # tokens of a frame
    with cache.denoise([a, b]) as step, paged.attending(partial(step.attend, rope=rope)):
        transformer(latents, timestep, text)           # one batch row per range, in the order of the ranges
    paged.remove()

The hook in diffusers_cache.py does the same in diffusers' own manner, with a cache of its own.

The transformer calls a processor for every self-attention layer (`set_attn_processor`) and cannot pass it anything
else, so the current step is kept in the object that `install` returns. Queries and keys are taken before rotary
embedding, where quantized keys are far more accurate. The transformer's own tables start at frame 0 in every call and
are not used; `rope` has the same angles for any frame.

Axes: B batch rows (ranges), n tokens of each, H heads, D head_dim; T = B n packed tokens; C latent channels, F latent
frames of R rows and S columns; L rows of text, N their width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from pagedvid.engine.protocol import Attend
from pagedvid.errors import ConfigError, StateError
from pagedvid.handles import layer_numbers
from pagedvid.integrations.diffusers_library import import_diffusers
from pagedvid.rotary.grid_rotary import GridRotary, theta_frequencies

SUPPORTED = ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel")
"""Transformers whose blocks agree in everything that is used here."""
ROPE_THETA = 10000.0
_PARTS = ("to_q", "to_k", "to_v", "to_out", "norm_q", "norm_k", "heads", "set_processor")
"""Attributes of a self-attention layer that the processor below uses."""


def install(transformer: Any) -> PagedSelfAttention:
    """Replaces the processors of all self-attention layers of a diffusers transformer.

    Raises ConfigError for a class or a version of the library that is not supported.
    """
    require_supported(transformer)
    return PagedSelfAttention(transformer)


def require_supported(transformer: Any) -> None:
    """Changes nothing. Raises ConfigError for a class or a version of the library that is not supported."""
    import_diffusers("attention processors")
    names = [base.__name__ for base in type(transformer).__mro__]
    if not any(name in SUPPORTED for name in names):
        raise ConfigError(
            f"a {names[0]} cannot take pagedvid's attention processors; diffusers' {' and '.join(SUPPORTED)} can"
        )
    for number, block in enumerate(transformer.blocks):
        missing = [part for part in _PARTS if not hasattr(getattr(block, "attn1", None), part)]
        if missing:
            raise ConfigError(
                f"self-attention of block {number} of this {names[0]} lacks {', '.join(missing)}: its version of "
                "diffusers is not supported; install 0.36 or newer"
            )


class PagedSelfAttention:
    """The installed processors of one transformer, and the attention of the current step."""

    def __init__(self, transformer: Any) -> None:
        """Called by `install`, which checks the transformer first."""
        self._transformer = transformer
        self._attend: Attend | None = None
        self._replaced = dict(transformer.attn_processors)
        self._own = [_Processor(self, layer) for layer in layer_numbers(len(transformer.blocks))]
        named = {f"blocks.{number}.attn1.processor": processor for number, processor in enumerate(self._own)}
        transformer.set_attn_processor({**self._replaced, **named})

    @contextmanager
    def attending(self, attend: Attend) -> Iterator[None]:
        """Inside the block, every self-attention layer calls `attend(layer, q [T, H, D], k, v)` with queries and keys
        before rotary embedding, batch rows packed in order. Raises StateError for nested blocks, and for layers that
        were given another processor since."""
        if self._attend is not None:
            raise StateError("this transformer is already attending in another block; leave that block first")
        blocks = enumerate(zip(self._transformer.blocks, self._own, strict=True))
        others = [layer for layer, (block, own) in blocks if block.attn1.processor is not own]
        if others:
            raise StateError(
                f"self-attention of layers {others} no longer has pagedvid's processors and would not see the history; "
                "set other processors first, then install these"
            )
        self._attend = attend
        try:
            yield
        finally:
            self._attend = None

    def remove(self) -> None:
        """Restores the transformer's former processors."""
        self._transformer.set_attn_processor(dict(self._replaced))

    def rope(self, rows: int, columns: int) -> GridRotary:
        """The transformer's rotary embedding for frames of `rows` x `columns` tokens. Raises ConfigError."""
        return transformer_rotary(self._transformer.rope, rows, columns)

    def attend(self, layer: SupportsIndex, q_BnHD: Tensor, k_BnHD: Tensor, v_BnHD: Tensor) -> Tensor:
        """One layer of all batch rows, [B, n, H D]. Raises StateError outside an `attending` block."""
        if self._attend is None:
            raise StateError(
                "a transformer with pagedvid's attention processors was called outside of an `attending` block; "
                "open a step of the cache and pass its attend, or call `remove` first"
            )
        # Under autocast, projections return its dtype and norms float32; attention wants one dtype for all.
        packed = (x.flatten(0, 1).to(v_BnHD.dtype) for x in (q_BnHD, k_BnHD, v_BnHD))
        return self._attend(layer, *packed).flatten(1).unflatten(0, q_BnHD.shape[:2])


class AttendingTransformer(nn.Module):
    """A transformer of diffusers as a function of tensors and `attend`."""

    def __init__(self, transformer: Any) -> None:
        """Replaces its self-attention. Raises what `install` raises."""
        super().__init__()
        self.transformer = transformer
        self.paged = install(transformer)
        if getattr(transformer.config, "inject_sample_info", False):
            # The library expects `fps` on the host, from where no CUDA graph can copy it.
            warnings.filterwarnings("ignore", "To copy construct from a tensor", module=r"diffusers\.")

    def forward(
        self, latents_BCFRS: Tensor, timesteps_B: Tensor, text_BLN: Tensor, fps_1: Tensor | None, attend: Attend
    ) -> Tensor:
        """Its output, [B, C, F, R, S]. `fps_1`: int64 [1] on the device, for transformers of SkyReels-V2 that
        take it."""
        given = {} if fps_1 is None else {"fps": fps_1}
        with self.paged.attending(attend):
            out: Tensor = self.transformer(latents_BCFRS, timesteps_B, text_BLN, return_dict=False, **given)[0]
        return out


class _Processor:
    """The attention processor of one self-attention layer, with the interface of diffusers."""

    _attention_backend = None
    """Set by diffusers' `set_attention_backend`; without effect here."""

    def __init__(self, paged: PagedSelfAttention, layer: SupportsIndex) -> None:
        self._paged = paged
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, n, H D] in and out, as in diffusers' WanAttnProcessor."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise StateError(
                "pagedvid's processor does self-attention without a mask: the step decides what a chunk sees. "
                "For SkyReels-V2 call `transformer._set_ar_attention(1)`, which disables its block mask"
            )
        if getattr(attn, "fused_projections", False):
            q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (attn.norm_q(q), attn.norm_k(k), v))
        attended = self._paged.attend(self.layer, q, k, v).type_as(hidden_states)
        for part in attn.to_out:
            attended = part(attended)
        return attended


def transformer_rotary(module: Any, rows: int, columns: int) -> GridRotary:
    """The rotary embedding of a transformer's `rope` module, for frames of `rows` x `columns` tokens.

    Angles are computed in float64, as in WanRotaryPosEmbed, and not read from its buffers: these end at
    `rope_max_seq_len` frames, and are rounded when the whole transformer is moved to bfloat16.

    Raises ConfigError when the module's tables are not those computed here.
    """
    channels = (module.t_dim, module.h_dim, module.w_dim)
    _check_buffers(module, torch.cat([theta_frequencies(size, ROPE_THETA) for size in channels]))
    return GridRotary.from_theta(channels, rows, columns, "interleaved", theta=ROPE_THETA)


def _check_buffers(module: Any, frequencies: Tensor) -> None:
    """The buffers hold a row for each position, whatever the axis, and each angle twice. Raises ConfigError."""
    if module.freqs_cos.is_meta:
        raise ConfigError(
            f"the rotary tables of this {type(module).__name__} have no content, and no checkpoint brings them: "
            "make the module anew, outside of torch.device('meta')"
        )
    expected = GridRotary.of_sequence(frequencies, "interleaved", num_cached=0).tables(0, len(module.freqs_cos))
    for table, ours in zip((module.freqs_cos, module.freqs_sin), expected, strict=True):
        given = table[:, ::2].float().cpu()
        tolerance = max(1e-3, 2 * torch.finfo(table.dtype).eps)
        if given.shape != ours.shape or not torch.allclose(given, ours, rtol=0, atol=tolerance):
            raise ConfigError(
                f"the rotary tables of this {type(module).__name__} are not those of base {ROPE_THETA:g}; "
                "this version of diffusers is not supported"
            )
