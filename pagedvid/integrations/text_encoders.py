"""Text encoders of the library `transformers`: prompts become embeddings. The only file that imports it.

`transformers` is optional (pip install "pagedvid[text]"); without it, requests bring their embeddings in a file.
Everything comes from folders: nothing is ever downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pagedvid.errors import ConfigError

CLASSES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Classes of transformers by the `model_type` of config.json."""


class T5TextEncoder:
    """The encoder half of a T5 or UMT5, such as google/t5-v1_1-xxl and google/umt5-xxl (width 4096).

    Its folder holds config.json, weights and tokenizer; or, as a pipeline of diffusers, the folders `text_encoder` and
    `tokenizer`; or it is the first of these two, beside the other. It computes in the type in which transformers loads
    the weights.
    """

    def __init__(self, folder: Path, kind: str, width: int, device: str = "cpu") -> None:
        """Loads tokenizer and weights of a `kind` ("t5" or "umt5") that gives rows of `width` channels.

        Raises ConfigError when the library or files are missing, or the folder holds another encoder.
        """
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(
                f"model.text_encoder needs the library transformers ({error}): pip install 'pagedvid[text]', or leave "
                "it out and give every request its embeddings in a file"
            ) from error
        check_folder(folder, kind, width)
        weights, tokenizer = _parts(folder)
        loader = getattr(transformers, CLASSES[kind])
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
            with _without_bars(transformers.utils.logging):
                model, found = loader.from_pretrained(weights, local_files_only=True, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise ConfigError(
                f"the text encoder {folder} cannot be loaded: {error} (a tokenizer in the file spiece.model needs "
                "what pip install 'pagedvid[text]' brings)"
            ) from error
        if found["missing_keys"]:
            raise ConfigError(f"the weights in {weights} lack {', '.join(sorted(found['missing_keys']))}")
        self._model: Any = model.to(device).eval()
        self._device = device

    @torch.no_grad()
    def encode(self, prompt: str, max_tokens: int) -> dict[str, Tensor]:
        """`embeddings` float32 [max_tokens, width] and `mask` [max_tokens] on the CPU; longer prompts are cut.

        Rows behind the mask's ones are those of padding tokens, as the library gives them.
        """
        tokens = self._tokenizer(
            prompt, max_length=max_tokens, padding="max_length", truncation=True, return_tensors="pt"
        )
        mask = tokens["attention_mask"].to(self._device)
        states = self._model(input_ids=tokens["input_ids"].to(self._device), attention_mask=mask).last_hidden_state
        return {"embeddings": states[0].float().cpu(), "mask": mask[0].cpu()}


def check_folder(folder: Path, kind: str, width: int) -> None:
    """Whether a folder holds an encoder of a kind and width; nothing large is read. Raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(
            f"the text encoder {folder} is no folder; give one with config.json, tokenizer and weights "
            "(nothing is downloaded)"
        )
    _check_config(_parts(folder)[0], kind, width)


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders of weights and tokenizer."""
    for weights, tokenizer in (
        (folder / "text_encoder", folder / "tokenizer"),
        (folder, folder.parent / "tokenizer"),
    ):
        if weights.is_dir() and tokenizer.is_dir() and not (weights / "tokenizer_config.json").is_file():
            return weights, tokenizer
    return folder, folder


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """Keeps the library's progress bars out of ours; `logging` is its module of that name."""
    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


def _check_config(folder: Path, kind: str, width: int) -> None:
    """Raises ConfigError."""
    try:
        config = json.loads((folder / "config.json").read_text())
        found = config["model_type"], config["d_model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no text encoder ({error!r}); give a folder in the layout of transformers, with "
            "model_type and d_model in config.json"
        ) from error
    if found != (kind, width):
        raise ConfigError(
            f"the text encoder {folder} is a {found[0]} of width {found[1]}; this model was trained on the rows of a "
            f"{kind} of width {width}"
        )
