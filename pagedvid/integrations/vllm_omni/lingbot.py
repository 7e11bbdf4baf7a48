"""LingBot-World in vLLM-Omni with several sessions in one forward, and with forks.

vLLM-Omni's pipeline denoises one session at a time. This one, chosen as `custom_pipeline_args: {pipeline_class: ...}`
next to the runner, packs the sessions of a scheduler's cycle as rows of one batch. They may be at different blocks and
denoise steps. Commit passes, conditions and decoding stay with each session.
Axes: B sessions, T tokens of a block, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.integrations.vllm_omni.forward import PagedForward
from pagedvid.integrations.vllm_omni.library import require_vllm_omni
from pagedvid.integrations.vllm_omni.session import PagedSession, begin_joint_forward

require_vllm_omni()

from vllm_omni.diffusion.models.lingbot_world.pipeline import LingBotWorldCausalDMDPipeline  # noqa: E402
from vllm_omni.diffusion.models.lingbot_world.transformer import (  # noqa: E402
    LingBotAttentionCache,
    LingBotTransformerCache,
)


class PagedLingBotPipeline(LingBotWorldCausalDMDPipeline):  # type: ignore[misc]  # vllm_omni is used through Any
    """A `LingBotWorldCausalDMDPipeline` to which several sessions can be bound."""

    _ar_diffusion_kv_state: PagedSession | None

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.bound_sessions: dict[str, PagedSession] = {}

    @property
    def supports_session_batch(self) -> bool:
        """Read by `PagedModelRunner`. With lingbot_reuse_last_step_kv, denoise steps store, which joint ones do not."""
        return not self._reuse_last_step_kv

    @contextmanager
    def bind_ar_diffusion_state(self, session_id: str, state: PagedSession) -> Iterator[None]:
        """Binds one more session; calls that name no session are for the one that was bound last."""
        self.bound_sessions[session_id] = state
        try:
            with self._only(session_id):
                yield
        finally:
            del self.bound_sessions[session_id]

    @contextmanager
    def _only(self, session_id: str) -> Iterator[None]:
        """Calls of vLLM-Omni's pipeline inside the block are of this session."""
        former = self._ar_diffusion_kv_state
        self._ar_diffusion_kv_state = self.bound_sessions[session_id]
        try:
            yield
        finally:
            self._ar_diffusion_kv_state = former

    def prepare_encode(self, state: Any, **kwargs: Any) -> Any:
        """As in vLLM-Omni, for the state's session."""
        with self._only(state.request_id):
            return super().prepare_encode(state, **kwargs)

    def prepare_next_chunk(self, state: Any) -> None:
        """As in vLLM-Omni, for the state's session."""
        with self._only(state.request_id):
            super().prepare_next_chunk(state)

    def post_decode(self, state: Any, **kwargs: Any) -> Any:
        """As in vLLM-Omni, for the state's session: its commit pass, and the result."""
        with self._only(state.request_id):
            return super().post_decode(state, **kwargs)

    def denoise_step(self, input_batch: Any, *, states: Sequence[Any], **kwargs: Any) -> Tensor:
        """The predicted flow [B, channels, frames, rows, columns] of one denoise step of every state's block."""
        if len(states) == 1:
            with self._only(states[0].request_id):
                return super().denoise_step(input_batch, states=states, **kwargs)
        return self._denoise_together(states)

    def fork_ar_diffusion_session(self, session_id: str, fork_id: str) -> None:
        """Gives session `fork_id` a copy of what this pipeline keeps for `session_id`; see `fork_session`."""
        if session_id in self._streaming_decode_states:
            raise ConfigError(
                f"session {session_id!r} decodes its frames while it is generated, and the decoder's state cannot be "
                "copied: fork sessions that give out latents"
            )
        self._ar_sessions[fork_id] = copy.copy(self._ar_sessions[session_id])

    def _denoise_together(self, states: Sequence[Any]) -> Tensor:
        extras = [state.extra for state in states]
        rows = [
            torch.cat((state.latents.to(state.extra["dtype"]), state.extra["condition"]), dim=1) for state in states
        ]
        timesteps = [float(state.extra["schedule"][state.step_in_chunk][0]) for state in states]
        layers_of_texts = zip(*(extra["ar_cross_attention"] for extra in extras), strict=True)
        sessions = [self.bound_sessions[state.request_id] for state in states]
        forward = begin_joint_forward(sessions, self._AR_BRANCH)
        layers = [forward.layer_inputs(layer) for layer in range(len(self.transformer.blocks))]
        with packed_rows(self.transformer, forward, num_rows=len(states)):
            return self.transformer(
                hidden_states=torch.cat(rows),
                timestep=torch.tensor(timesteps, dtype=torch.float32, device=self.device),
                encoder_hidden_states=torch.cat([state.prompt_embeds for state in states]),
                camera_hidden_states=torch.cat([extra["camera"] for extra in extras]),
                cache=LingBotTransformerCache(layers, [_joined(texts) for texts in layers_of_texts]),
                start_frame=0,  # not used: packed_rows gives every row the positions of its own block
                update_cache=False,
            )


def _joined(texts: Sequence[Any]) -> Any:
    """One layer's text keys and values of all sessions, as rows of a batch."""
    keys, values = (torch.cat([getattr(text, name)[:, : text.end] for text in texts]) for name in ("key", "value"))
    num_tokens = keys.shape[1]
    return LingBotAttentionCache(key=keys, value=values, end=num_tokens, absolute_end=num_tokens, last_start=0)


@contextmanager
def packed_rows(transformer: Any, forward: PagedForward, num_rows: int) -> Iterator[None]:
    """Inside the block, self-attention gets the rows of a batch as one sequence, each at its own positions.

    Everything else in the transformer treats rows apart by itself.
    """
    rotary = forward.rotary_tables()

    def pack(attention: Any, args: tuple[Tensor], kwargs: dict[str, Any]) -> tuple[tuple[Tensor], dict[str, Any]]:
        (x_BTC,) = args
        cos, sin = (table.to(x_BTC) for table in rotary)
        return (x_BTC.flatten(0, 1).unsqueeze(0),), {**kwargs, "rotary_emb": (cos, sin)}

    def unpack(attention: Any, args: Any, out_1TC: Tensor) -> Tensor:
        return out_1TC.squeeze(0).unflatten(0, (num_rows, -1))

    with ExitStack() as hooks:
        for block in transformer.blocks:
            attention = block.self_attn
            if attention.ulysses_world_size > 1:
                raise ConfigError(
                    "sessions whose tokens are split over devices cannot be packed: set max_num_seqs to 1"
                )
            hooks.callback(attention.register_forward_pre_hook(pack, with_kwargs=True).remove)
            hooks.callback(attention.register_forward_hook(unpack).remove)
        yield
