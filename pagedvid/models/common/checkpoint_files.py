"""Which files a checkpoint consists of: a file, an index of shards, or a folder with one of them.

What pagedvid writes, or is given with a request, may be in the same folder: tables of klt codecs, latents, embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pagedvid.config.sections import ModelConfig
from pagedvid.errors import ConfigError, listed
from pagedvid.files.paths import is_file, is_folder, read_json, readable_file
from pagedvid.shown import named

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
GGUF_SUFFIX = ".gguf"
SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, GGUF_SUFFIX)
ALLOWED = ", ".join(SUFFIXES)
INDEX_SUFFIX = ".index.json"
TABLES_FILE_NAME = "klt_tables.safetensors"
"""Name of the file that `pagedvid calibrate` writes, next to the weights."""
SPECIAL_TOKENS_FILE_NAME = "special_tokens.npz"
"""Name of the file of MAGI-1's special tokens, next to the weights."""
_ADVICE = "give the file or folder of the model's weights"
_OURS = "pagedvid "
"""Prefix of `format` in the metadata of files that pagedvid writes."""
_IN_REQUESTS = {
    "embeddings", "mask", "latents", "prompt_embeds", "negative_prompt_embeds", "prompt_mask", "byt5_states",
    "byt5_mask", "vision_states", "image_cond", "image_latent",
}  # fmt: skip
"""Tensors of the files that requests bring, and of latents."""


def checkpoint_files(path: Path) -> tuple[Path, ...]:
    """The files of a checkpoint, all of them readable. `path` is one of them, an index, or a folder with one
    checkpoint, in which an index wins over single files. Raises ConfigError."""
    if is_folder(path):
        return _files_in(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _indexed_files(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{named(path)} is no checkpoint: allowed are {ALLOWED}, a folder")
    return (readable_file(path, _ADVICE),)


def files_of_part(path: Path) -> tuple[Path, ...]:
    """All files with weights and settings of a model, text encoder or VAE at `path`, a checkpoint or a folder in
    whatever layout. Raises ConfigError."""
    if not is_folder(path):
        return checkpoint_files(path)
    entries = _entries(path)
    settings = [entry for entry in entries if entry.name in ("config.json", SPECIAL_TOKENS_FILE_NAME)]
    return (*settings, *_weights_among(entries))


def _files_in(folder: Path) -> tuple[Path, ...]:
    entries = _entries(folder)
    indices = [entry for entry in entries if entry.name.endswith(INDEX_SUFFIX)]
    if len(indices) == 1:
        return _indexed_files(indices[0])
    weights = _weights_among(entries)
    if not indices and len(weights) == 1:
        return (readable_file(weights[0]),)
    found = indices or weights or [entry for entry in entries if is_file(entry)]
    raise ConfigError(
        f"{named(folder)} holds no single checkpoint: expected one *{INDEX_SUFFIX} with its shards, or one file that "
        f"ends in {ALLOWED}; found {listed([file.name for file in found])}. Name the file itself."
    )


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, without hidden files, by name. Raises ConfigError."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{named(folder)} cannot be read: {error.strerror}; {_ADVICE}") from error


def _weights_among(entries: Sequence[Path]) -> list[Path]:
    return [entry for entry in entries if entry.suffix in SUFFIXES and not _is_something_else(entry)]


def _is_something_else(file: Path) -> bool:
    """Whether a file holds no weights, by its name or by what its header says."""
    if file.name == TABLES_FILE_NAME:
        return True
    if file.suffix != ".safetensors" or not is_file(file):
        return False
    try:
        with safe_open(file, framework="pt") as content:
            names, metadata = set(content.keys()), content.metadata() or {}
    except (SafetensorError, OSError):
        return False  # damaged weights, perhaps: whoever reads them says so
    return metadata.get("format", "").startswith(_OURS) or (bool(names) and names <= _IN_REQUESTS)


def _indexed_files(index: Path) -> tuple[Path, ...]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise ConfigError(
            f"{named(index)} is not an index of shards: weight_map is missing, or does not give a file to every "
            "tensor; download it again"
        )
    names = sorted(set(weight_map.values()))
    wrong = [name for name in names if Path(name).name != name or Path(name).suffix not in SUFFIXES]
    if wrong:
        raise ConfigError(
            f"{named(index)} names {listed(wrong)}; a shard is a file next to its index that ends in {ALLOWED}"
        )
    files = tuple(index.parent / name for name in names)
    missing = [file.name for file in files if not is_file(file)]
    if missing:
        raise ConfigError(f"{named(index)} names shards that are missing: {listed(missing)}; download them, too")
    return tuple(readable_file(file) for file in files)


def needed_weights(config: ModelConfig) -> Path:
    """The weights of a model that ships without. Raises ConfigError."""
    if config.weights is None:
        raise ConfigError(f"{config.name} ships without weights: give --weights PATH, the published file or folder")
    return Path(config.weights)


def path_or_none(written: str | None) -> Path | None:
    """A setting that names a file or folder, as a path."""
    return None if written is None else Path(written)
