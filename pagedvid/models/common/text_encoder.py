"""What a model needs of a text encoder: the `TextEncoder` protocol, and one that encodes every prompt only once.

The encoders themselves are in pagedvid/integrations/text_encoders.py.
"""

from __future__ import annotations

import contextlib
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.errors import PromptError

MIN_REMEMBERED = 256
"""Least number of prompts whose rows are kept, 1.6 MB each at 100 tokens of width 4096."""


class TextEncoder(Protocol):
    """Turns prompts into the rows that cross-attention reads."""

    def encode(self, prompt: str, max_tokens: int) -> dict[str, Tensor]:
        """`embeddings` float32 [max_tokens, width] and `mask` [max_tokens]: ones for rows that count, then zeros."""
        ...


class RememberingTextEncoder:
    """Encodes a prompt once, however many videos are made of it, and keeps the encoder's weights no longer than needed.

    `encode_all` is for the prompts that are known before the model is loaded: they are encoded and the encoder is gone
    before the model takes its memory. A prompt that comes later, as in a server, loads the encoder again and leaves it
    there for the next one; `release` drops it.
    """

    def __init__(self, load: Callable[[], TextEncoder]) -> None:
        """`load` makes the encoder; it is called when a prompt has to be encoded and no encoder is there."""
        self._load = load
        self._encoder: TextEncoder | None = None
        self._rows: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._num_remembered = MIN_REMEMBERED

    @property
    def is_loaded(self) -> bool:
        """Whether the encoder's weights are in memory."""
        return self._encoder is not None

    def encode_all(self, prompts: Iterable[str], max_tokens: int) -> None:
        """Encodes prompts for later and releases the encoder. Raises what loading and encoding raise, except
        PromptError: it is raised again for the video of that prompt, and must not end the others."""
        unique = dict.fromkeys(prompts)
        self._num_remembered = max(self._num_remembered, len(unique))
        for prompt in unique:
            with contextlib.suppress(PromptError):
                self.encode(prompt, max_tokens)
        self.release()

    def encode(self, prompt: str, max_tokens: int) -> dict[str, Tensor]:
        """As `TextEncoder.encode`, with zeros in rows that do not count. Raises what loading and encoding raise."""
        key = (prompt, max_tokens)
        if key not in self._rows:
            self._rows[key] = self._encoded(prompt, max_tokens)
            if len(self._rows) > self._num_remembered:
                self._rows.popitem(last=False)
        self._rows.move_to_end(key)
        rows = self._rows[key]
        padding = max_tokens - len(rows)
        mask = (torch.arange(max_tokens) < len(rows)).long()
        return {"embeddings": torch.nn.functional.pad(rows, (0, 0, 0, padding)), "mask": mask}

    def release(self) -> None:
        """Drops the encoder's weights; what was encoded stays."""
        self._encoder = None
        gc.collect()

    def _encoded(self, prompt: str, max_tokens: int) -> Tensor:
        """The rows that count, [n, width]."""
        if self._encoder is None:
            self._encoder = self._load()
        encoded = self._encoder.encode(prompt, max_tokens)
        return encoded["embeddings"][: int(encoded["mask"].sum())].clone()


def t5_encoder(
    folder: Path | None, kind: str, width: int, device: str, prompts: Iterable[str], max_tokens: int
) -> RememberingTextEncoder | None:
    """The encoder of a folder, of a kind ("t5", "umt5") and width, with `prompts` encoded and its weights released.

    To be called before the model is loaded, so that the two are never in memory together. None without a folder.
    Raises ConfigError.
    """
    if folder is None:
        return None
    from pagedvid.integrations.text_encoders import T5TextEncoder, check_folder

    encoder, known = RememberingTextEncoder(lambda: T5TextEncoder(folder, kind, width, device)), list(prompts)
    if not known:
        check_folder(folder, kind, width)  # a wrong folder is refused now, not when the first prompt comes
    encoder.encode_all(known, max_tokens)
    return encoder
