"""Decoders that keep nothing say so, and refuse what they could not have kept."""

from __future__ import annotations

import pytest
import torch

from pagedvid.errors import ConfigError
from pagedvid.models.common.stateless_decoder import StatelessDecoder


def test_it_decodes_and_has_no_state():
    decoder = StatelessDecoder(lambda latents_TC: 2 * latents_TC.numpy())
    assert decoder(torch.ones(2, 3)).tolist() == [[2.0] * 3] * 2
    assert decoder.state() == {}
    decoder.restore({})


def test_the_state_of_a_vae_is_refused():
    with pytest.raises(ConfigError, match=r"keeps no state, but feature\.0, feature\.1 are given"):
        StatelessDecoder(lambda latents_TC: latents_TC.numpy()).restore(
            {f"feature.{number}": torch.zeros(1) for number in (1, 0)}
        )
