"""Self-Forcing's rollout as its repository does it, retold over the modules of diffusers: a dense cache of a fixed
number of frames, keys stored after rotary embedding, eviction by moving what is behind the sinks to the front.

The rules are those of wan/modules/causal_model.py (`CausalWanSelfAttention.forward`) and pipeline/causal_inference.py.
Nothing of pagedvid is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LaterText:
    """Another text from one of the new chunks on."""

    chunk: int
    text: Tensor
    recache: bool


@dataclass
class RollingCache:
    """Keys and values of one layer, [cache tokens, H, D], filled from the front."""

    k: Tensor
    v: Tensor
    global_end: int = 0
    local_end: int = 0

    def update(self, k: Tensor, v: Tensor, current_start: int, sink_tokens: int) -> tuple[Tensor, Tensor]:
        """Writes the current tokens, over those of an earlier pass of the same chunk; all that is then visible."""
        num_new, size = len(k), len(self.k)
        current_end = current_start + num_new
        if current_end > self.global_end and num_new + self.local_end > size:
            num_evicted = num_new + self.local_end - size
            num_rolled = self.local_end - num_evicted - sink_tokens
            for kept in (self.k, self.v):
                rolled = kept[sink_tokens + num_evicted : sink_tokens + num_evicted + num_rolled].clone()
                kept[sink_tokens : sink_tokens + num_rolled] = rolled
            local_end = self.local_end + current_end - self.global_end - num_evicted
        else:
            local_end = self.local_end + current_end - self.global_end
        self.k[local_end - num_new : local_end] = k
        self.v[local_end - num_new : local_end] = v
        self.global_end, self.local_end = current_end, local_end
        return self.k[:local_end], self.v[:local_end]


class CachedProcessor:
    """Self-attention of one layer over its cache, for one video."""

    def __init__(self, rollout: SelfForcing) -> None:
        self.rollout = rollout
        config = rollout.transformer.config
        shape = (rollout.cache_frames * rollout.frame_tokens, config.num_attention_heads, config.attention_head_dim)
        self.cache = RollingCache(torch.zeros(shape), torch.zeros(shape))

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        rollout, x = self.rollout, hidden_states[0]
        q, k, v = (
            y.unflatten(1, (attn.heads, -1))
            for y in (attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x))
        )
        q, k = rollout.turned(q), rollout.turned(k)
        keys, values = self.cache.update(
            k, v, rollout.start_frame * rollout.frame_tokens, rollout.sink_frames * rollout.frame_tokens
        )
        out = F.scaled_dot_product_attention(*(y.transpose(0, 1)[None] for y in (q, keys, values)))
        return attn.to_out[0](out[0].transpose(0, 1).flatten(1)).unsqueeze(0)


class SelfForcing:
    """One video. `cache_frames` is its local_attn_size: sinks, recent frames and the current chunk."""

    def __init__(self, transformer, frame_tokens: int, sink_frames: int, cache_frames: int) -> None:
        self.transformer = transformer
        self.frame_tokens = frame_tokens
        self.sink_frames = sink_frames
        self.cache_frames = cache_frames
        self.start_frame = 0
        for block in transformer.blocks:
            block.attn1.set_processor(CachedProcessor(self))

    def turned(self, x_nHD: Tensor) -> Tensor:
        """Rotary embedding as complex numbers (`causal_rope_apply`), frames counted from the video's start."""
        rope, rows, columns = self.transformer.rope, *self.grid
        num_frames = len(x_nHD) // self.frame_tokens
        parts = []
        for width, axis in ((rope.t_dim, 0), (rope.h_dim, 1), (rope.w_dim, 2)):
            place = torch.cartesian_prod(
                torch.arange(self.start_frame, self.start_frame + num_frames), torch.arange(rows), torch.arange(columns)
            )[:, axis]
            frequencies = 1.0 / torch.pow(10000, torch.arange(0, width, 2).double() / width)
            parts.append(torch.outer(place.double(), frequencies))
        angles = torch.cat(parts, dim=1)
        turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        turned = torch.view_as_complex(x_nHD.double().unflatten(-1, (-1, 2))) * turns
        return torch.view_as_real(turned).flatten(2).to(x_nHD.dtype)

    @torch.no_grad()
    def rollout(
        self,
        noises: list[list[Tensor]],
        timesteps: list[float],
        shift: float,
        text: Tensor,
        given: Sequence[Tensor] = (),
        later: LaterText | None = None,
    ) -> Tensor:
        """Latents [frames, C, R, S] from each chunk's noises [C, frames, R, S]: what it starts from, then those for
        re-noising. `timesteps` are warped as `warp_denoising_step` does. `given`: clean chunks [C, frames, R, S] that
        come first, of which only keys and values are made (its `initial_latent`). `later`: another text on the way."""
        sigmas = torch.linspace(1.0, 0.0, 1001, dtype=torch.float64)[:-1]
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        warped = [float(sigmas[1000 - int(timestep)]) for timestep in timesteps]
        done: list[Tensor] = []
        for clean in given:
            self.commit(clean.double(), text)
        for chunk, noise in enumerate(noises):
            if later is not None and chunk == later.chunk:
                text = later.text
                if later.recache:
                    self.commit_again([*given, *done], text)
            x = noise[0].double()
            for step, sigma in enumerate(warped):
                clean = x - sigma * self.flow(x, 1000 * sigma, text)
                if step + 1 < len(warped):
                    x = (1 - warped[step + 1]) * clean + warped[step + 1] * noise[step + 1].double()
            self.commit(clean, text)
            done.append(clean)
        return torch.cat(done, dim=1).transpose(0, 1).float()

    def commit(self, clean: Tensor, text: Tensor) -> None:
        """The clean pass of a chunk [C, frames, R, S], whose keys and values stay; the next chunk comes after it."""
        self.flow(clean, 0.0, text)
        self.start_frame += clean.shape[1]

    def commit_again(self, chunks: Sequence[Tensor], text: Tensor) -> None:
        """Empties the caches and makes keys and values of what the next chunk sees, oldest first, each over those
        before it: what LongLive's `_recache_after_switch` makes in one pass with a causal mask."""
        size = chunks[0].shape[1]
        num_sinks, next_frame = self.sink_frames // size, self.start_frame
        num_recent = self.cache_frames // size - num_sinks - 1  # the next chunk takes one place
        first_recent = max(num_sinks, len(chunks) - num_recent)
        caches = [block.attn1.processor.cache for block in self.transformer.blocks]
        for cache in caches:
            cache.local_end = 0
        for chunk in [*range(min(num_sinks, len(chunks))), *range(first_recent, len(chunks))]:
            self.start_frame = chunk * size
            for cache in caches:
                cache.global_end = self.start_frame * self.frame_tokens
            self.commit(chunks[chunk].double(), text)
        assert self.start_frame == next_frame

    def flow(self, x: Tensor, timestep: float, text: Tensor) -> Tensor:
        """The velocity of the chunk, [C, frames, R, S] in float64."""
        self.grid = (x.shape[2] // 2, x.shape[3] // 2)
        given = x.float().unsqueeze(0)
        return self.transformer(given, torch.tensor([timestep]), text, return_dict=False)[0][0].double()
