"""The decoder of models whose frames need nothing of earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pagedvid.errors import ConfigError, listed


@dataclass(frozen=True)
class StatelessDecoder:
    """A function as a `Decoder`."""

    decode: Callable[[Tensor], np.ndarray]

    def __call__(self, latents_TC: Tensor, /) -> np.ndarray:
        """The output of the video's next frames."""
        return self.decode(latents_TC)

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing. Raises ConfigError for the state of another kind of decoder."""
        if state:
            raise ConfigError(
                f"this model's decoder keeps no state, but {listed(sorted(state))} are given; restore the video with "
                "the model and VAE that it was made with"
            )
