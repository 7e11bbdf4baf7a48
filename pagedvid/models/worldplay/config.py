"""The networks' sizes, read off a checkpoint: shapes of its tensors, and a `config.json` beside it for what shapes do
not tell, if there is one. No tensor is read.

Keys of `config.json` that count: `attention_head_dim` (WAN-5B), `rope_dim_list` and `rope_theta` (8B), all three as
published; and `latent_size`, [rows, columns] of a latent frame, to make videos of another resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagedvid.errors import ConfigError
from pagedvid.files.paths import is_file, is_folder, read_json
from pagedvid.models.common.checkpoint import tensor_shapes
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.worldplay.network_8b import Config8B
from pagedvid.models.worldplay.network_wan5b import ConfigWan5B
from pagedvid.shown import named

LARGEST = 1_000_000
"""Of any number in a configuration file."""
Shapes = Mapping[str, tuple[int, ...]]


def read_config_8b(path: Path, prefer_ema: bool = True) -> Config8B:
    """Sizes of an 8B checkpoint (file, index or folder). Raises ConfigError when it is none."""
    shapes, facts = tensor_shapes(path, prefer_ema), _config_file(path)
    try:
        width, input_channels, *patch = shapes["img_in.proj.weight"]
        (head_dim,) = shapes["double_blocks.0.img_attn_q_norm.weight"]
        return Config8B(
            latent_channels=(input_channels - 1) // 2,
            patch=(patch[0], patch[1], patch[2]),
            width=width,
            num_heads=width // head_dim,
            num_layers=_num_blocks(shapes, "double_blocks."),
            mlp_width=shapes["double_blocks.0.img_mlp.fc1.weight"][0],
            rope_channels=_rope_channels(facts, head_dim),
            rope_theta=_number(facts, "rope_theta", Config8B.rope_theta),
            text_channels=shapes["txt_in.input_embedder.weight"][1],
            glyph_channels=shapes["byt5_in.fc1.weight"][1],
            glyph_hidden=(shapes["byt5_in.fc1.weight"][0], shapes["byt5_in.fc2.weight"][0]),
            vision_channels=shapes["vision_in.proj.1.weight"][1],
        )
    except ConfigError as error:
        raise ConfigError(f"{named(path)}: {error}") from error
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise _not_a_checkpoint(path, "8B", error) from error


def read_config_wan5b(path: Path, prefer_ema: bool = True) -> ConfigWan5B:
    """Sizes of a WAN-5B checkpoint (file, index or folder). Raises ConfigError when it is none."""
    shapes, facts = tensor_shapes(path, prefer_ema), _config_file(path)
    try:
        width, latent_channels, *patch = shapes["patch_embedding.weight"]
        head_dim = int(_number(facts, "attention_head_dim", ConfigWan5B.head_dim))
        if width % head_dim:
            raise ConfigError(f"it is {width} channels wide, which is no multiple of the head size {head_dim}")
        return ConfigWan5B(
            latent_channels=latent_channels,
            patch=(patch[0], patch[1], patch[2]),
            num_heads=width // head_dim,
            head_dim=head_dim,
            num_layers=_num_blocks(shapes, "blocks."),
            mlp_width=shapes["blocks.0.ffn.net.0.proj.weight"][0],
            text_channels=shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        )
    except ConfigError as error:
        raise ConfigError(f"{named(path)}: {error}") from error
    except (KeyError, ValueError, IndexError) as error:
        raise _not_a_checkpoint(path, "WAN-5B", error) from error


def read_grid(path: Path, config: Config8B | ConfigWan5B, default: tuple[int, int]) -> LatentGrid:
    """The latent frames of a checkpoint's videos. Raises ConfigError for a size that the patches do not divide."""
    size = _config_file(path).get("latent_size", default)
    if not isinstance(size, list | tuple) or [type(side) for side in size] != [int, int] or max(size) > LARGEST:
        raise ConfigError(f"latent_size is {size!r}; expected are rows and columns of a latent frame")
    rows, columns = size
    return LatentGrid(config.latent_channels, rows, columns, config.patch[1])


def _rope_channels(facts: Mapping[str, Any], head_dim: int) -> tuple[int, int, int]:
    """Time, row, column; by default in the proportion 2 : 7 : 7 of the published (16, 56, 56)."""
    given = facts.get("rope_dim_list", (head_dim // 8, 7 * head_dim // 16, 7 * head_dim // 16))
    is_triple = isinstance(given, list | tuple) and [type(channels) for channels in given] == [int, int, int]
    if not is_triple or min(given) < 2 or any(channels % 2 for channels in given):
        raise ConfigError(f"rope_dim_list is {given!r}; expected are three even numbers of channels")
    time, row, column = given
    if time + row + column != head_dim:
        raise ConfigError(f"rope_dim_list {list(given)} does not add up to the head size {head_dim}")
    return time, row, column


def _number(facts: Mapping[str, Any], name: str, default: float) -> float:
    """A number of the configuration file that is at least 1."""
    value = facts.get(name, default)
    if type(value) not in (int, float) or not 1 <= value <= LARGEST:
        raise ConfigError(f"{name} is {value!r}; it must be a number from 1 to {LARGEST}")
    return float(value)


def _num_blocks(shapes: Shapes, prefix: str) -> int:
    numbers = {int(name.split(".")[1]) for name in shapes if name.startswith(prefix)}
    return max(numbers) + 1


def _config_file(path: Path) -> dict[str, Any]:
    file = (path if is_folder(path) else path.parent) / "config.json"
    if not is_file(file):
        return {}
    content = read_json(file, "download it again or remove it")
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__}, not a table of settings")
    return content


def _not_a_checkpoint(path: Path, variant: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{named(path)} is not a checkpoint of HY-WorldPlay {variant}: {error} is missing or has another shape"
    )
