"""LoRAs merged into the weights while these are loaded: nothing of them is left when the model runs.

Sums are in float32 and rounded once, to the dtype that the network keeps the tensor in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pagedvid.config.loras import Lora
from pagedvid.errors import ConfigError, listed
from pagedvid.files.paths import exists
from pagedvid.models.common.checkpoint_files import checkpoint_files
from pagedvid.models.common.lora_file import Change, read_changes
from pagedvid.models.common.lora_settings import adapter_config_of
from pagedvid.shown import named


class LoraMerge:
    """Adds the changes of all LoRAs to a tensor: what `load_checkpoint` takes as `convert`."""

    def __init__(
        self, loras: Sequence[Lora], wanted: Mapping[str, Tensor], rename: Callable[[str], str | None]
    ) -> None:
        """`wanted`: the network's tensors, which may be on "meta", by name. `rename`: plain name -> the network's.

        Reads all files. Raises ConfigError for keys of another network, and for other shapes.
        """
        self._changes: dict[str, list[tuple[float, Change]]] = {}
        for lora in loras:
            for file in checkpoint_files(Path(lora.path)):
                self._add(file, lora.scale, wanted, rename)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor, float32 where anything is added to it."""
        for scale, change in self._changes.get(name, ()):
            tensor = tensor.float().add(change.value(), alpha=scale)
        return tensor

    def _add(self, file: Path, scale: float, wanted: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> None:
        changes = [(rename(name), change) for name, change in read_changes(file)]
        if unknown := [part.key for own, change in changes if own not in wanted for part in change.parts]:
            raise ConfigError(
                f"{named(file)} changes what this model does not have: {listed(unknown)}; give a LoRA of this model"
            )
        for own, change in changes:
            assert own is not None
            if change.shape != tuple(wanted[own].shape):
                raise ConfigError(
                    f"{named(file)} is of another model: {' and '.join(map(str, change.parts))} cannot be added to "
                    f"{own} {list(wanted[own].shape)}; give a LoRA of this model"
                )
            self._changes.setdefault(own, []).append((scale, change))


def files_of_lora(path: Path) -> list[Path]:
    """All files that decide what a LoRA adds, settings among them. Raises ConfigError."""
    files = checkpoint_files(path)
    return [*files, *(config for file in files if (config := adapter_config_of(file)) is not None)]


def check_loras(loras: Sequence[Lora]) -> None:
    """Raises ConfigError for paths that do not exist; nothing is read."""
    for lora in loras:
        if not exists(Path(lora.path)):
            raise ConfigError(
                f"model.loras names {named(lora.path)}, which does not exist; give PATH or PATH:SCALE (nothing is "
                "downloaded)"
            )
