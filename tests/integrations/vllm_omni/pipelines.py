"""What a pipeline of vLLM-Omni announces, without vLLM-Omni."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Pipeline:
    """Sessions of two guidance branches, in blocks of 2 frames of 20 tokens, with 1 sink block, a window of 3 blocks
    that counts the one being denoised, and a text of 5 tokens."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def ar_diffusion_kv_cache_spec(self) -> Any:
        announced = {
            "num_layers": 2,
            "num_kv_heads": 2,
            "head_size": 32,
            "tokens_per_frame": 20,
            "frames_per_block": 2,
            "window_frames": 6,
            "sink_frames": 2,
            "reset_at_boundary": False,
            "kv_branches": (SimpleNamespace(name="cond", local_index=0), SimpleNamespace(name="uncond", local_index=1)),
            "cross_attention": (SimpleNamespace(name="text", num_tokens=5, num_kv_heads=None),),
            "session_capacity": 2,
            "max_scratch_tokens_per_branch": 0,
            "model_owned_state_bytes_per_session": 0,
        }
        return SimpleNamespace(**{**announced, **self._changes})

    def pagedvid_rope(self) -> None:
        """Keys have no positions."""


def kv_config(**changes: Any) -> Any:
    """vLLM-Omni's settings of its cache."""
    return SimpleNamespace(
        **{
            "window_chunks": None,
            "sink_chunks": 0,
            "reset_at_boundary": False,
            "gpu_memory_fraction": 0.1,
            **changes,
        }
    )
