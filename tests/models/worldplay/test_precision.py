"""Both networks in bfloat16, as they are published: everything runs, and stays close to float32."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models.worldplay.recordings import VARIANTS, inputs, max_error, network
from tests.models.worldplay.rollout import GRIDS, Recorded8B, RecordedWan5B, make_engine, recorded_final, request, run


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_weights_and_activations(variant):
    """Two chunks; measured largest deviation 0.03 (8B) and 0.04 (WAN) at a standard deviation of 1."""
    kind = Recorded8B if variant == "hy8b" else RecordedWan5B
    half = copy.deepcopy(network(variant)).to(torch.bfloat16)
    model = kind(half, GRIDS[variant], inputs(variant)["points_local"])
    final = run(make_engine(model, "int8"), [request(variant, num_frames=8)])["recorded"]
    deviation = max_error(final, recorded_final(variant)[:8])
    assert 1e-3 < deviation < 0.2
