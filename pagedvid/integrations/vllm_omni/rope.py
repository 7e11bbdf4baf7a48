"""The rotary embedding of vLLM-Omni's transformers, read from the model: pages keep keys from before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.rotary.tables import RopeTables

LINGBOT = "CausalLingBotWorldTransformer3DModel"


class LingBotRope:
    """`RopeTables` of LingBot-World: positions are (frame of the video, row, column). In float32 even for a model in
    bfloat16, so that un-rotating and rotating again cancel."""

    layout = "interleaved"

    def __init__(self, transformer: Any, rows: int, columns: int) -> None:
        """`rows`, `columns`: of the tokens of a frame."""
        self._transformer, self._rows, self._columns = transformer, rows, columns

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [num_tokens, head_dim / 2]."""
        frame_tokens = self._rows * self._columns
        first_frame, skipped = divmod(first_token, frame_tokens)
        cos, sin = self._transformer._rotary_embedding(
            frames=-(-(skipped + num_tokens) // frame_tokens),
            height=self._rows,
            width=self._columns,
            start_frame=first_frame,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        wanted = slice(skipped, skipped + num_tokens)
        return cos[wanted], sin[wanted]


def rope_of(pipeline: Any) -> RopeTables | None:
    """The rotary embedding of a pipeline's transformer. Raises ConfigError for a pipeline of an unknown model.

    A pipeline of your own gives it as `pagedvid_rope()`; None: its keys have no positions.
    """
    given = getattr(pipeline, "pagedvid_rope", None)
    if given is not None:
        rope: RopeTables | None = given()
        return rope
    transformer: Any = getattr(pipeline, "transformer", None)
    if not any(kind.__name__ == LINGBOT for kind in type(transformer).__mro__):
        raise ConfigError(
            f"the rotary embedding of {type(transformer).__name__} is not known here, and keys are stored from before "
            f"it: give {type(pipeline).__name__} a method pagedvid_rope() that returns its RopeTables "
            "(docs/embed.md), or None if keys have no positions"
        )
    _, patch_rows, patch_columns = transformer.config.patch_size
    spatial = pipeline.vae_scale_factor_spatial
    rows, columns = pipeline._ar_height // spatial // patch_rows, pipeline._ar_width // spatial // patch_columns
    return LingBotRope(transformer, rows, columns)
