"""All sessions of a worker: one cache, and how many of them it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pagedvid.errors import CapacityError
from pagedvid.integrations.vllm_omni.cross_attention import CrossAttention, TextShape
from pagedvid.integrations.vllm_omni.geometry import SessionGeometry
from pagedvid.integrations.vllm_omni.rope import rope_of
from pagedvid.integrations.vllm_omni.session import PagedSession
from pagedvid.integrations.vllm_omni.settings import PagedSettings
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.tables import RopeTables
from pagedvid.units import format_bytes


class SessionStore:
    """Takes the place of vLLM-Omni's `ARDiffusionKVCache`: opens sessions, whose peaks are reserved."""

    def __init__(
        self,
        cache: PagedKVCache,
        geometry: SessionGeometry,
        rope: RopeTables | None,
        texts: Mapping[str, TextShape],
        dtype: torch.dtype,
        capacity: int,
    ) -> None:
        """`dtype`: of the texts. `capacity`: how many sessions `cache` was made for."""
        self.cache, self.geometry, self.capacity = cache, geometry, capacity
        self._rope, self._texts, self._dtype = rope, dict(texts), dtype

    @classmethod
    def for_pipeline(
        cls,
        pipeline: Any,
        kv_config: Any,
        settings: PagedSettings,
        dtype: torch.dtype,
        device: torch.device | str,
        free_bytes: int,
    ) -> SessionStore:
        """For a pipeline and vLLM-Omni's `ARDiffusionKVConfig`, in `free_bytes` of memory.

        As many sessions as were asked for, or as many as fit. Raises ConfigError, CapacityError if not even one fits.
        """
        asked = pipeline.ar_diffusion_kv_cache_spec()
        geometry = SessionGeometry.of(asked, kv_config)
        spec = geometry.cache_spec(settings)
        texts = {
            text.name: TextShape(text.num_tokens, text.num_kv_heads or asked.num_kv_heads, asked.head_size)
            for text in asked.cross_attention
        }
        page_bytes = geometry.page_bytes(spec)
        text_bytes = sum(
            2 * len(geometry.streams) * asked.num_layers * shape.num_tokens * shape.num_heads * shape.head_dim
            for shape in texts.values()
        )
        session_bytes = page_bytes + text_bytes * dtype.itemsize + asked.model_owned_state_bytes_per_session
        given = settings.memory
        if given is None:  # as vLLM-Omni: its share of free memory, but one session if that fits at all
            given = max(int(free_bytes * kv_config.gpu_memory_fraction), min(session_bytes, free_bytes))
        wanted = settings.sessions or asked.session_capacity
        capacity = min(wanted, given // session_bytes)
        if capacity < 1:
            raise CapacityError(
                f"a session needs {format_bytes(session_bytes)} ({format_bytes(page_bytes)} of it for pages in "
                f"{spec.codecs.history}), and {format_bytes(given)} are given: raise memory in the settings of "
                "pagedvid, or gpu_memory_fraction"
            )
        cache = PagedKVCache(spec, capacity * page_bytes, device, tables=settings.tables)
        return cls(cache, geometry, rope_of(pipeline), texts, dtype, capacity)

    @property
    def cross_attention_lengths(self) -> dict[str, int]:
        """Tokens of every named text, which pipelines read here."""
        return {name: shape.num_tokens for name, shape in self._texts.items()}

    def open(self, session_id: str) -> PagedSession:
        """A new session with its peak reserved. Raises CapacityError, after which nothing was taken."""
        texts = CrossAttention(self._texts, self.geometry.num_layers, self._dtype)
        session = PagedSession(session_id, self.cache, self.geometry, self._rope, texts, ())
        try:
            for _ in range(self.geometry.num_streams):
                session.streams.append(self.cache.open(self.geometry.window, self.geometry.block_tokens))
        except BaseException:
            session.close()
            raise
        return session
