"""LPIPS, a learned perceptual distance (Zhang et al., CVPR 2018, arXiv 1801.03924). Only this file imports `lpips`.

The package brings its own weights; those of the AlexNet below them are downloaded by torchvision when it is first used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagedvid.errors import ConfigError

MIN_SIDE = 31
"""Smaller frames leave nothing after AlexNet's second pooling."""


class Lpips:
    """The distance with AlexNet, which its authors recommend for comparisons."""

    def __init__(self) -> None:
        """Raises ConfigError, which says why it cannot be used: not installed, or its network cannot be loaded."""
        try:
            import lpips
        except ImportError as error:
            raise ConfigError(f"its package is not there ({error}): pip install 'pagedvid[lpips]'") from None
        try:
            self._network: Any = lpips.LPIPS(net="alex", verbose=False).eval()
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"its network cannot be loaded ({error}); torchvision downloads AlexNet once to the folder TORCH_HOME"
            ) from None

    @torch.inference_mode()
    def distance(self, a_HWC: NDArray[np.uint8], b_HWC: NDArray[np.uint8]) -> float:
        """From 0 (equal) to about 1, of two RGB frames of at least `MIN_SIDE` pixels a side."""
        return float(self._network(_as_input(a_HWC), _as_input(b_HWC)).item())


def _as_input(frame_HWC: NDArray[np.uint8]) -> Tensor:
    """[1, 3, H, W], from -1 to 1."""
    return torch.from_numpy(frame_HWC).permute(2, 0, 1)[None].float() / 127.5 - 1
