"""What a model needs of a text encoder: the `TextEncoder` protocol. See pagedvid/integrations/text_encoders.py."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TextEncoder(Protocol):
    """Turns prompts into the rows that cross-attention reads."""

    def encode(self, prompt: str, max_tokens: int) -> dict[str, Tensor]:
        """`embeddings` float32 [max_tokens, width] and `mask` [max_tokens]: ones for rows that count, then zeros."""
        ...
