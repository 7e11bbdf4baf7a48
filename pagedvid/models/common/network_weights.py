"""Published weights into a transformer, in the form that the settings ask for.

model.weights_dtype: fp8    linear layers of its blocks in eight bits (fp8_linear.py)
model.offload: true         its blocks in host memory (offload.py)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pagedvid.config.sections import ModelConfig
from pagedvid.models.common.checkpoint import load_checkpoint
from pagedvid.models.common.fp8_linear import use_fp8
from pagedvid.models.common.offload import offload


def load_network(
    network: nn.Module,
    blocks: nn.ModuleList,
    path: Path,
    config: ModelConfig,
    rename: Callable[[str], str | None] = lambda name: name,
    convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
) -> None:
    """Gives a network on "meta" its weights, and puts it on `config.device`. Its parameters have the dtypes to run in.

    `blocks`: those of its parts that run one after the other, each by a call. For `rename` and `convert` see
    `load_checkpoint`. Raises ConfigError.
    """
    if config.weights_dtype == "fp8":
        use_fp8(blocks)
    load_checkpoint(network, path, "cpu" if config.offload else config.device, rename, convert, config.ema)
    if config.offload:
        offload(network, list(blocks), torch.device(config.device))
    else:
        network.to(config.device)
