"""The rows that cross-attention reads: a prompt through a UMT5 encoder, or rows that a request brings.

An embeddings file is a safetensors file with `prompt_embeds` and, for models with guidance, `negative_prompt_embeds`
(left out: the model's own negative prompt is encoded): float [L, width] or [1, L, width], L at most `text_tokens`.
A request keeps only these rows, on the CPU until it runs; a forward pads them with the zeros that these models were
trained with.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ConfigError, PromptError
from pagedvid.files.tensor_files import read_tensors, refuse_odd_dtype
from pagedvid.models.common.text_encoder import TextEncoder

FILE_NAMES = {"cond": "prompt_embeds", "uncond": "negative_prompt_embeds"}
"""Names in an embeddings file by role."""


@dataclass(frozen=True)
class PromptReader:
    """Turns what a request brings into rows, at most [num_tokens, width]."""

    model_name: str
    encoder: TextEncoder | None
    num_tokens: int
    width: int

    def rows(self, prompts: Mapping[str, str], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Rows by role, [n, width] on the CPU, from the inputs' embeddings or else from the prompt of each role.

        Raises ConfigError for inputs that are not as the module docstring says, PromptError without any encoder.
        """
        unknown = sorted(set(inputs) - {"embeddings"})
        if unknown:
            raise ConfigError(f'{self.model_name} takes the input "embeddings" only; remove {", ".join(unknown)}')
        given = self._given(inputs["embeddings"], prompts) if "embeddings" in inputs else {}
        missing = {role: prompt for role, prompt in prompts.items() if role not in given}
        return given | {role: self._encoded(role, prompt) for role, prompt in missing.items()}

    def stacked(self, rows: Sequence[Tensor], like: Tensor) -> Tensor:
        """Rows of several ranges padded with zeros, [P, num_tokens, width]; device and dtype are those of `like`."""
        padded = like.new_zeros(len(rows), self.num_tokens, self.width)
        for place, given in zip(padded, rows, strict=True):
            place[: len(given)] = given
        return padded

    def _encoded(self, role: str, prompt: str) -> Tensor:
        if self.encoder is None:
            raise PromptError(
                f"{self.model_name} has nothing to encode the prompt {prompt!r} with: set model.text_encoder, or give "
                f'the request a file with {FILE_NAMES[role]} (its input "embeddings")'
            )
        encoded = self.encoder.encode(cleaned(prompt), self.num_tokens)
        return encoded["embeddings"][: int(encoded["mask"].sum())]

    def _given(self, source: Any, prompts: Mapping[str, str]) -> dict[str, Tensor]:
        tensors = source if isinstance(source, Mapping) else read_tensors(Path(source), "the embeddings")
        known = {FILE_NAMES[role]: role for role in prompts}
        unknown = sorted(set(tensors) - set(known))
        if unknown or FILE_NAMES["cond"] not in tensors:
            raise ConfigError(
                f"the embeddings hold {', '.join(sorted(tensors)) or 'nothing'}; {self.model_name} takes "
                f"{', '.join(known)}, and needs {FILE_NAMES['cond']}"
            )
        return {known[name]: self._checked(name, x) for name, x in tensors.items()}

    def _checked(self, name: str, x: Tensor) -> Tensor:
        rows = x[0] if x.ndim == 3 and len(x) == 1 else x
        if rows.ndim != 2 or rows.shape[1] != self.width or not 0 < len(rows) <= self.num_tokens:
            raise ConfigError(
                f"{name} has shape {list(x.shape)}; {self.model_name} takes [rows, {self.width}] of at most "
                f"{self.num_tokens} rows"
            )
        refuse_odd_dtype(rows, name)
        if not bool(torch.isfinite(rows).all()):
            raise ConfigError(f"{name} has NaN or infinite values; encode the prompt again")
        return rows


def cleaned(prompt: str) -> str:
    """A prompt as in these models' training: HTML entities unescaped (twice), single spaces."""
    return " ".join(html.unescape(html.unescape(prompt)).split())
