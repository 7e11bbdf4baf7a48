"""The paged cache of a diffusers transformer is switched on and off without a trace, and refuses what it cannot do."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.integrations.diffusers import SUPPORTED
from pagedvid.integrations.diffusers_cache import disable_paged_cache, enable_paged_cache
from tests.integrations.diffusers_rollouts import chunk_of, committed, config, denoised, forward, hook_rollout, text_of
from tests.models.wan.base.tiny import CONFIG, tiny_transformer


@pytest.fixture(params=SUPPORTED)
def class_name(request):
    return request.param


def test_disabling_leaves_the_transformer_as_it_was(class_name):
    transformer = tiny_transformer(class_name)
    processors, expected = transformer.attn_processors, forward(transformer, chunk_of(0), 900)
    for _ in range(2):
        paged = enable_paged_cache(transformer, config())
        assert transformer.is_cache_enabled
        hook_rollout(transformer, paged, num_chunks=2)
        disable_paged_cache(transformer)
        assert paged.cache.streams == ()
    assert transformer.attn_processors == processors
    assert torch.equal(forward(transformer, chunk_of(0), 900), expected)
    assert not transformer.is_cache_enabled
    transformer.train()
    out = transformer(chunk_of(0), torch.tensor([900]), text_of("cond"), return_dict=False)[0]
    out.sum().backward()
    assert transformer.blocks[0].attn1.to_q.weight.grad is not None


def test_disabling_restores_processors_that_the_user_had_set():
    transformer = tiny_transformer("WanTransformer3DModel")
    own = copy.copy(transformer.blocks[0].attn1.processor)
    transformer.blocks[0].attn1.set_processor(own)
    enable_paged_cache(transformer, config())
    disable_paged_cache(transformer)
    assert transformer.blocks[0].attn1.processor is own


# ---------------------------------------------------------------------- refused


def test_training_mode_is_refused(class_name):
    transformer = tiny_transformer(class_name)
    with pytest.raises(ConfigError, match=r"training mode.*eval\(\)"):
        enable_paged_cache(transformer.train(), config())
    enable_paged_cache(transformer.eval(), config())
    transformer.train()
    with pytest.raises(StateError, match=r"training mode.*disable_paged_cache"):
        denoised(transformer, chunk_of(0))


def test_other_transformers_are_refused():
    from diffusers import WanVACETransformer3DModel

    for other in (torch.nn.Linear(2, 2), WanVACETransformer3DModel.__new__(WanVACETransformer3DModel)):
        for call in (partial(enable_paged_cache, config=config()), disable_paged_cache):
            with pytest.raises(ConfigError, match=f"a {type(other).__name__} cannot take"):
                call(other)


def test_rotary_tables_of_another_base_are_refused_before_anything_changes():
    transformer = tiny_transformer("WanTransformer3DModel")
    processors = transformer.attn_processors
    transformer.rope = type(transformer.rope)(CONFIG["attention_head_dim"], (1, 2, 2), 64, theta=500.0)
    with pytest.raises(ConfigError, match="not those of base"):
        enable_paged_cache(transformer, config())
    assert transformer.attn_processors == processors and not transformer.is_cache_enabled


def test_enabling_twice_and_disabling_nothing_are_refused(class_name):
    transformer = tiny_transformer(class_name)
    with pytest.raises(StateError, match="has no paged cache"):
        disable_paged_cache(transformer)
    paged = enable_paged_cache(transformer, config())
    with pytest.raises(ConfigError, match="has a paged cache already; call disable_paged_cache"):
        enable_paged_cache(transformer, config())
    hook_rollout(transformer, paged, num_chunks=1)  # the first one is still there
    disable_paged_cache(transformer)
    with pytest.raises(StateError, match="has no paged cache"):
        disable_paged_cache(transformer)


@pytest.mark.parametrize("by_method", [True, False])
def test_another_cache_is_refused(by_method):
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    transformer, other = tiny_transformer("WanTransformer3DModel"), FirstBlockCacheConfig(threshold=0.1)
    transformer.enable_cache(other) if by_method else apply_first_block_cache(transformer, other)
    with pytest.raises(ConfigError, match=r"another cache is enabled.*disable_cache\(\)"):
        enable_paged_cache(transformer, config())


def test_the_library_refuses_a_second_cache():
    from diffusers import FirstBlockCacheConfig

    transformer = tiny_transformer("WanTransformer3DModel")
    paged = enable_paged_cache(transformer, config())
    with pytest.raises(ValueError, match=r"already been enabled.*PagedCacheConfig"):
        transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"PagedCacheConfig.*not supported"):
        transformer.disable_cache()
    hook_rollout(transformer, paged, num_chunks=1)


def test_a_transformer_split_over_devices_is_refused():
    transformer = tiny_transformer("WanTransformer3DModel")
    transformer._parallel_config = object()
    with pytest.raises(ConfigError, match="split over devices"):
        enable_paged_cache(transformer, config())


def test_calls_outside_of_a_context_are_refused():
    transformer = tiny_transformer("WanTransformer3DModel")
    enable_paged_cache(transformer, config())
    with pytest.raises(StateError, match=r'cache_context\("cond"\)'):
        forward(transformer, chunk_of(0), 900)


def test_latents_that_do_not_continue_the_videos_are_refused():
    transformer = tiny_transformer("WanTransformer3DModel")
    paged = enable_paged_cache(transformer, config())
    with pytest.raises(ShapeError, match=r"4 latent frames.*frames_per_chunk=3"):
        denoised(transformer, chunk_of(0, num_frames=4))
    assert paged.cache.streams == ()
    committed(transformer, paged, chunk_of(0))
    with pytest.raises(ShapeError, match=r"2 videos of 3 x 5.*has 1 of 3 x 5; call reset"):
        denoised(transformer, chunk_of(1, num_videos=2))
    with pytest.raises(ShapeError, match=r"1 videos of 3 x 4 tokens"):
        denoised(transformer, chunk_of(1)[..., :8])


def test_processors_set_over_the_paged_ones_are_refused(class_name):
    """Their layers would not see the history."""
    transformer = tiny_transformer(class_name)
    former = transformer.blocks[1].attn1.processor
    paged = enable_paged_cache(transformer, config())
    committed(transformer, paged, chunk_of(0))
    transformer.blocks[1].attn1.set_processor(former)
    with pytest.raises(StateError, match=r"layers \[1\] no longer has pagedvid's processors"):
        denoised(transformer, chunk_of(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames_per_chunk": 0}, "frames_per_chunk is 0"),
        ({"window": 4}, "window is 4"),
        ({"codecs": "int2"}, "codecs is 'int2'"),
        ({"memory": "much"}, "much"),
        ({"codecs": StreamCodecs("klt2")}, "tables"),
        ({"correction": "some"}, "correction is 'some'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    transformer = tiny_transformer("WanTransformer3DModel")
    with pytest.raises(ConfigError, match=message):
        enable_paged_cache(transformer, config(**changes))
    with pytest.raises(ConfigError, match=r"config is.*give PagedCacheConfig"):
        enable_paged_cache(transformer, {"memory": "8GiB"})
    assert not transformer.is_cache_enabled
