"""Queries and keys into half layout and rotated, against rotary/tables.py."""

from __future__ import annotations

import pytest
import torch

from pagedvid.rotary.kernels import rotated
from tests.attention.kernels import reference
from tests.devices import DEVICE


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("num_tokens", [1, 45])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_equals_the_reference(layout: str, num_tokens: int, head_dim: int) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(num_tokens, 5, head_dim, generator=generator, device="cpu").to(DEVICE)[:, 1:4]  # its own strides
    angles = torch.randn(num_tokens, head_dim // 2, generator=generator, device="cpu").to(DEVICE)
    tables = (angles.cos(), angles.sin())
    torch.testing.assert_close(rotated(x, layout, tables), reference.rotated(x, layout, tables), rtol=0, atol=1e-6)
    assert torch.equal(rotated(x, layout, None), reference.rotated(x, layout, None))
