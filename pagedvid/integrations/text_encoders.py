"""Text encoders of the library `transformers`: prompts become embeddings. The only file that imports it.

`transformers` is optional (pip install "pagedvid[text]"); without it, requests bring their embeddings in a file.
Models are read from local folders; nothing is ever downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pagedvid.errors import ConfigError, PromptError
from pagedvid.files.paths import is_file, is_folder, read_json
from pagedvid.integrations.weights_folder import check_after_loading, check_before_loading, likely_reason
from pagedvid.shown import named, shown

CLASSES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Classes of transformers for each `model_type` in config.json."""


class T5TextEncoder:
    """The encoder half of a T5 or UMT5, such as google/t5-v1_1-xxl and google/umt5-xxl (width 4096).

    Its folder holds config.json, weights and tokenizer; or it is a pipeline of diffusers, with the folders
    `text_encoder` and `tokenizer`; or it is the `text_encoder` folder of such a pipeline. It computes in the dtype in
    which transformers loads the weights.
    """

    def __init__(self, folder: Path, kind: str, width: int, device: str = "cpu") -> None:
        """Loads the tokenizer and weights of a `kind` ("t5" or "umt5") whose embeddings have `width` channels.

        Raises ConfigError if the library or files are missing, or if the folder holds another encoder.
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
        for part in (weights, tokenizer):
            check_before_loading(part)
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
            with _without_bars(transformers.utils.logging):
                model, found = loader.from_pretrained(weights, local_files_only=True, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, ImportError, RecursionError, SafetensorError) as error:
            raise ConfigError(
                f"the text encoder {named(folder)} cannot be loaded: {likely_reason((weights, tokenizer), error)} "
                "(a tokenizer in the file spiece.model needs what pip install 'pagedvid[text]' brings)"
            ) from error
        if found["missing_keys"]:
            raise ConfigError(f"the weights in {weights} lack {', '.join(sorted(found['missing_keys']))}")
        check_after_loading(model, weights)
        self._model: Any = model.to(device).eval()
        self._device = device

    @torch.no_grad()
    def encode(self, prompt: str, max_tokens: int) -> dict[str, Tensor]:
        """`embeddings` float32 [max_tokens, width] and `mask` [max_tokens], both on the CPU.

        Where the mask is 0, rows are those of padding tokens, as the library gives them. A longer prompt is cut, with a
        warning that names it. Raises PromptError for text that is not valid Unicode.
        """
        self._check_prompt(prompt, max_tokens)
        tokens = self._tokenizer(
            prompt, max_length=max_tokens, padding="max_length", truncation=True, return_tensors="pt"
        )
        mask = tokens["attention_mask"].to(self._device)
        states = self._model(input_ids=tokens["input_ids"].to(self._device), attention_mask=mask).last_hidden_state
        return {"embeddings": states[0].float().cpu(), "mask": mask[0].cpu()}

    def _check_prompt(self, prompt: str, max_tokens: int) -> None:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the prompt {shown(prompt)} has half a character at {error.start} (a lone surrogate), which no "
                "text encoder can read; remove it"
            ) from error
        num_tokens = len(self._tokenizer(prompt, verbose=False)["input_ids"])
        if num_tokens > max_tokens:
            message = (
                f"the prompt {shown(prompt)} has {num_tokens} tokens; this model reads {max_tokens}, and the rest "
                "has no effect: shorten it"
            )
            warnings.warn(message, stacklevel=3)


def check_folder(folder: Path, kind: str, width: int) -> None:
    """Raises ConfigError unless a folder holds an encoder of this kind and width. Reads config.json only."""
    if not is_folder(folder):
        raise ConfigError(
            f"the text encoder {named(folder)} is not a folder; give one with config.json, tokenizer and weights "
            "(nothing is downloaded)"
        )
    _check_config(_parts(folder)[0], kind, width)


def _parts(folder: Path) -> tuple[Path, Path]:
    """The folders of weights and tokenizer."""
    for weights, tokenizer in (
        (folder / "text_encoder", folder / "tokenizer"),
        (folder, folder.parent / "tokenizer"),
    ):
        if is_folder(weights) and is_folder(tokenizer) and not is_file(weights / "tokenizer_config.json"):
            return weights, tokenizer
    return folder, folder


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """Hides the library's progress bars, which would mix with ours; `logging` is its module of that name."""
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
        config = read_json(folder / "config.json")
        found = config["model_type"], config["d_model"]
    except (ConfigError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ConfigError) else repr(error)
        raise ConfigError(
            f"{named(folder)} holds no text encoder ({reason}); give a folder in the layout of transformers, with "
            "model_type and d_model in config.json"
        ) from error
    if found != (kind, width):
        raise ConfigError(
            f"the text encoder {folder} is a {found[0]} of width {found[1]}; this model was trained on the rows of a "
            f"{kind} of width {width}"
        )
