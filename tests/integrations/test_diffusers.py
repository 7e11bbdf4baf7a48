"""Processors in diffusers' own transformers: what is replaced, what stays, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.integrations.diffusers import SUPPORTED, install, transformer_rotary
from tests.models.wan.base.forwards import cache_for
from tests.models.wan.base.tiny import TEXT_WIDTH, tiny_transformer
from tests.models.wan.causal.test_rollout import tiny_model
from tests.test_host_state import default_dtype

CHUNK_TOKENS = 45


@pytest.fixture(params=SUPPORTED)
def class_name(request):
    return request.param


def call(transformer, num_videos=1):
    """One forward of chunks of 3 x 3 x 5 tokens at different noise levels."""
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(num_videos, 4, 3, 6, 10, generator=generator, dtype=torch.float32)
    text = torch.randn(num_videos, 6, TEXT_WIDTH, generator=generator, dtype=torch.float32)
    timesteps = torch.tensor([900, 400][:num_videos])
    with torch.no_grad():
        return transformer(latents, timesteps, text, return_dict=False)[0]


def paged_call(transformer, paged, num_videos=1):
    """The same through an empty cache."""
    cache = cache_for(tiny_model(), "fp32", "off")
    streams = [cache.open(Window(0, 1), CHUNK_TOKENS) for _ in range(num_videos)]
    with cache.denoise(streams) as step, paged.attending(partial(step.attend, rope=paged.rope(3, 5))):
        return call(transformer, num_videos)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("num_videos", [1, 2])
def test_without_history_the_transformer_gives_what_it_gave(class_name, fused, num_videos):
    transformer = tiny_transformer(class_name)
    expected = call(transformer, num_videos)
    if fused:
        transformer.fuse_qkv_projections()
    torch.testing.assert_close(
        paged_call(transformer, install(transformer), num_videos), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("state", ["autocast", "default dtype", "inference mode"])
def test_what_a_host_has_set_reaches_its_own_layers_only(class_name, state):
    """Under autocast the library's attention is given its types, and so is this one."""
    transformer = tiny_transformer(class_name)
    tolerance = {"autocast": 3e-2}.get(state, 1e-4)
    states = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16), "inference mode": torch.inference_mode}
    with states.get(state, lambda: default_dtype(torch.bfloat16))():
        expected = call(transformer).float()
        got = paged_call(transformer, install(transformer)).float()
    assert float((got - expected).norm() / expected.norm()) < tolerance


def test_cross_attention_keeps_its_processors_and_removing_gives_the_others_back(class_name):
    transformer = tiny_transformer(class_name)
    before, expected = transformer.attn_processors, call(transformer)
    paged = install(transformer)
    during = transformer.attn_processors
    assert during.keys() == before.keys() and len(during) == 4
    assert {name for name in during if during[name] is not before[name]} == {
        f"blocks.{layer}.attn1.processor" for layer in (0, 1)
    }
    paged.remove()
    assert transformer.attn_processors == before
    assert torch.equal(call(transformer), expected)


def test_every_layer_asks_once_with_packed_tokens_before_rotary_embedding(class_name):
    transformer = tiny_transformer(class_name)
    paged, asked = install(transformer), []

    def attend(layer, q, k, v):
        asked.append((layer, q, k, v))
        return v

    with paged.attending(attend):
        call(transformer, num_videos=2)
    assert [layer for layer, *_ in asked] == [0, 1]
    assert all(x.shape == (2 * CHUNK_TOKENS, 2, 16) for _, *xs in asked for x in xs)
    norm = transformer.blocks[0].attn1.norm_q
    unscaled = asked[0][1].flatten(1) / norm.weight  # of unit mean square over all heads, as the norm leaves queries
    torch.testing.assert_close(unscaled.square().mean(1), torch.ones(90), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head_dim", [16, 128])
def test_the_tables_are_those_of_the_library_and_go_on_behind_them(head_dim):
    """16: 8, 4 and 4 channels rotate with time, row and column; 128, as published: 44, 42 and 42."""
    transformer = tiny_transformer("WanTransformer3DModel", attention_head_dim=head_dim, num_layers=1)
    rope = transformer_rotary(transformer.rope, 3, 5)
    cos, sin = transformer.rope(torch.empty(1, 4, 64, 6, 10))
    for ours, theirs in zip(rope.tables(0, 64 * 15), (cos, sin), strict=True):
        torch.testing.assert_close(ours, theirs[0, :, 0, ::2], rtol=0, atol=1e-6)
    part = rope.tables(5 * 15, 45)
    torch.testing.assert_close(part[0], cos[0, 75:120, 0, ::2], rtol=0, atol=1e-6)
    longer = transformer_rotary(type(transformer.rope)(head_dim, (1, 2, 2), 1024), 3, 5)
    assert torch.equal(rope.tables(500 * 15, 15)[1], longer.tables(500 * 15, 15)[1])
    assert rope.layout == "interleaved"


def test_tables_of_another_base_or_without_content_are_refused():
    transformer = tiny_transformer("WanTransformer3DModel")
    other = type(transformer.rope)(16, (1, 2, 2), 64, theta=500.0)
    with pytest.raises(ConfigError, match="not those of base 10000"):
        transformer_rotary(other, 3, 5)
    with torch.device("meta"):
        empty = type(transformer.rope)(16, (1, 2, 2), 64)
    with pytest.raises(ConfigError, match="have no content"):
        transformer_rotary(empty, 3, 5)


def test_outside_of_a_block_the_transformer_says_what_is_missing(class_name):
    transformer = tiny_transformer(class_name)
    paged = install(transformer)
    with pytest.raises(StateError, match="outside of an `attending` block"):
        call(transformer)
    with paged.attending(lambda layer, q, k, v: v):
        call(transformer)
        with pytest.raises(StateError, match="already attending"), paged.attending(lambda layer, q, k, v: v):
            pytest.fail("not reached")
        call(transformer)  # the refused block has not ended this one
    with pytest.raises(StateError, match="outside"):
        call(transformer)


def test_a_block_that_fails_leaves_nothing_behind():
    transformer = tiny_transformer("WanTransformer3DModel")
    paged = install(transformer)
    with pytest.raises(ShapeError, match="packed tokens"):
        cache = cache_for(tiny_model(), "fp32", "off")
        with cache.denoise([cache.open(Window(0, 1), 7)]) as step, paged.attending(step.attend):
            call(transformer)
    torch.testing.assert_close(
        paged_call(transformer, paged), call(tiny_transformer("WanTransformer3DModel")), rtol=1e-4, atol=1e-5
    )


def test_a_block_mask_is_refused():
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    transformer._set_ar_attention(3)
    with pytest.raises(StateError, match=r"without a mask.*_set_ar_attention"):
        paged_call(transformer, install(transformer))


def test_other_transformers_are_refused():
    from diffusers import WanVACETransformer3DModel

    with pytest.raises(ConfigError, match=r"a Linear cannot take.*WanTransformer3DModel and SkyReelsV2"):
        install(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="a WanVACETransformer3DModel cannot"):
        install(WanVACETransformer3DModel.__new__(WanVACETransformer3DModel))


@pytest.mark.parametrize("version", ["0.34.0", "1.0.0"])
def test_versions_that_are_not_known_are_refused(monkeypatch, version):
    import diffusers

    transformer = tiny_transformer("WanTransformer3DModel")
    monkeypatch.setattr(diffusers, "__version__", version)
    with pytest.raises(ConfigError, match=rf"attention processors needs? diffusers.*{version}"):
        install(transformer)


def test_self_attention_of_another_make_is_refused():
    transformer = tiny_transformer("WanTransformer3DModel")
    del transformer.blocks[1].attn1.norm_q
    with pytest.raises(ConfigError, match=r"self-attention of block 1.*lacks norm_q"):
        install(transformer)
