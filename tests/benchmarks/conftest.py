"""What the benchmarks' tests share: a demo model small enough to run in a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.demo.weights import save_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Folder of an untrained model whose frames depend on its history: no parameter keeps its initial zero."""
    torch.manual_seed(0)
    network = Transformer(TransformerConfig(width=64, num_heads=1, num_layers=2))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_weights(network, tmp_path / "weights", {"steps": 0})
    return tmp_path / "weights"
