"""What the cards say that VAEs keep is what diffusers' decoders of published size keep."""

from __future__ import annotations

import pytest
import torch

from pagedvid.capacity.card_files import find_card
from tests.integrations.tiny_parts import WAN22

PUBLISHED = {
    "self-forcing": {},
    "krea-14b": {},
    "skyreels-v2-1.3b": {},
    "skyreels-v2-14b": {},
    "longlive-2-5b": {**WAN22, "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48},
}
"""Arguments of AutoencoderKLWan in the published config.json files; those of Wan 2.1 are its defaults."""


@pytest.mark.parametrize("name", list(PUBLISHED))
@torch.no_grad()
def test_features_are_those_of_the_decoder_after_any_number_of_frames(name):
    from diffusers import AutoencoderKLWan

    card, config = find_card(name), PUBLISHED[name]
    _, down, right = card.vae_stride
    with torch.device("meta"):
        vae = AutoencoderKLWan(**config)
        x_CFRS = torch.empty(1, vae.z_dim, 1, card.resolution.height // down, card.resolution.width // right)
        features = [None] * vae._cached_conv_counts["decoder"]
        vae.decoder(x_CFRS, feat_cache=features, feat_idx=[0], first_chunk=True)
        for _ in range(2):
            vae.decoder(x_CFRS, feat_cache=features, feat_idx=[0])
            kept = sum(feature.numel() * 4 for feature in features if isinstance(feature, torch.Tensor))
            assert kept == card.vae_features == card.vae_stream_bytes(card.resolution)
