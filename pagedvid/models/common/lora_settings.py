"""What a LoRA's file says of alpha, for pairs that have none of their own: PEFT's settings, next to the file or in its
metadata."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pagedvid.errors import ConfigError, listed
from pagedvid.files.paths import is_file, read_json
from pagedvid.shown import named, shown

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's settings, next to adapter_model.safetensors."""
METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers writes the same settings in a .safetensors file."""


@dataclass(frozen=True)
class DefaultFactor:
    """alpha / rank of pairs without an alpha of their own."""

    alpha: float | None = None
    """None: the rank."""
    by_root: bool = False
    """Divides by the rank's root instead (`use_rslora`)."""

    @staticmethod
    def of(file: Path) -> DefaultFactor:
        """From what PEFT or diffusers wrote with the file. Raises ConfigError."""
        facts = _adapter_facts(file)
        alpha = facts.get("lora_alpha")
        if alpha is not None and (type(alpha) not in (int, float) or not math.isfinite(alpha)):
            raise ConfigError(f"{named(file)}: its lora_alpha is {shown(alpha)}; it must be a number")
        unsupported = [name for name in ("alpha_pattern", "use_dora") if facts.get(name)]
        if unsupported:
            raise ConfigError(f"{named(file)} was trained with {listed(unsupported)}, which is not supported; merge it")
        return DefaultFactor(alpha, facts.get("use_rslora") is True)

    def __call__(self, rank: int) -> float:
        """That of a pair of this rank."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.by_root else rank)


def adapter_config_of(file: Path) -> Path | None:
    """The file of PEFT's settings that belongs to a file; None: there is none."""
    config = file.with_name(ADAPTER_CONFIG)
    return config if file.stem == "adapter_model" and is_file(config) else None


def _adapter_facts(file: Path) -> dict[str, Any]:
    """PEFT's settings of a file; empty where there are none. Raises ConfigError for what cannot be read."""
    if (config := adapter_config_of(file)) is not None:
        facts = read_json(config)
    elif file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as content:
            written = (content.metadata() or {}).get(METADATA_KEY, "{}")
        try:
            facts = json.loads(written)
        except ValueError as error:
            raise ConfigError(f"{named(file)}: its {METADATA_KEY} is no JSON ({error}); download it again") from error
    else:
        return {}
    if not isinstance(facts, dict):
        raise ConfigError(f"the settings of {named(file)} are a {type(facts).__name__}, not a table; download it again")
    return {name.removeprefix("transformer."): value for name, value in facts.items()}
