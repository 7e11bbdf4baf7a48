"""The mass meter says what the package's attention does: with values of 1 in the history and 0 in the current chunk,
attention returns exactly the mass of the cached keys.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.geometry import RoleCodecs, Window
from pagedvid.models.base import ModelGeometry
from pagedvid.paged_kv_cache import PagedKVCache

GEOMETRY = ModelGeometry(2, 2, 2, 32, tokens_per_frame=50, frames_per_chunk=2)
NUM_VIDEOS, CHUNK_TOKENS = 2, GEOMETRY.chunk_tokens
WINDOW = Window(1, 2)


def new_cache(codec: str, correction: str) -> PagedKVCache:
    return PagedKVCache(CacheSpec(2, 2, 32, codecs=RoleCodecs(codec), correction=correction), "1MiB")


def test_masses_are_those_of_the_attention_layer() -> None:
    from attention import LineRope
    from attention_mass import VARIANTS, MassMeter

    rope = LineRope(32)
    model = SimpleNamespace(geometry=GEOMETRY, rope=rope)
    shape = (3, GEOMETRY.num_layers, NUM_VIDEOS * CHUNK_TOKENS, 2, 32)
    q, k = 1.5 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    cases = dict(
        zip(VARIANTS, (("fp32", "off"), ("int2", "off"), ("int2", "formula"), ("int2", "measured")), strict=True)
    )
    expected = {}
    for variant, case in cases.items():
        cache = new_cache(*case)
        meter = MassMeter(model, new_cache("int2", "measured"), WINDOW, NUM_VIDEOS, watched=(2,))
        streams = [cache.open(WINDOW, CHUNK_TOKENS) for _ in range(NUM_VIDEOS)]
        for chunk, stored in ((0, 1.0), (1, 1.0), (2, 0.0)):
            with cache.commit(streams) if stored else cache.denoise(streams) as step:
                for layer in range(GEOMETRY.num_layers):
                    values = torch.full_like(k[chunk, layer], stored)
                    meter(step, layer, q[chunk, layer], k[chunk, layer], values)
                    out = step.attend(layer, q[chunk, layer], k[chunk, layer], values, rope)
                    expected[variant, layer] = out.unflatten(0, (NUM_VIDEOS, -1)).mean(dim=(1, 2, 3))
    for number, variant in enumerate(VARIANTS):
        for layer in range(GEOMETRY.num_layers):
            torch.testing.assert_close(meter.masses[number, layer], expected[variant, layer], atol=2e-5, rtol=0)
    assert (meter.masses[1] - meter.masses[0]).abs().min() > 1e-3  # there is something to correct
