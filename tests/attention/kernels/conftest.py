"""Tensors of these tests are made where the kernels run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.attention.kernels.scenes import DEVICE


@pytest.fixture(autouse=True)
def on_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield
