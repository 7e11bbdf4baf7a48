"""The paged cache as a hook of diffusers: against the processors by hand and dense attention; what is refused."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import CapacityError, ConfigError, NonFiniteError, ShapeError, StateError
from pagedvid.integrations.diffusers import SUPPORTED, install
from pagedvid.integrations.diffusers_cache import PagedCacheConfig, disable_paged_cache, enable_paged_cache
from pagedvid.paged_kv_cache import PagedKVCache
from tests.models.wan.base.tiny import CONFIG, TEXT_WIDTH, tiny_transformer
from tests.models.wan.causal.self_forcing import SelfForcing

FRAMES, FRAME_TOKENS = 3, 15
NUM_CHUNKS = 6
TIMES = (900, 400, 0)
"""Of a chunk's forwards; the last one is its commit pass."""
EXACT = {"codecs": StreamCodecs("fp32"), "window": Window(1, 2)}
TEXTS = {"cond": 1, "uncond": 2}
"""Cache contexts, and seeds of what they are conditioned on."""


@pytest.fixture(params=SUPPORTED)
def class_name(request):
    return request.param


def config(**changes):
    return PagedCacheConfig(**{"memory": "16MiB", "frames_per_chunk": FRAMES, **EXACT, **changes})


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def chunk_of(number, num_videos=1, num_frames=FRAMES):
    return noise(100 + number, num_videos, 4, num_frames, 6, 10)


def text_of(context, num_videos=1):
    return noise(TEXTS[context], num_videos, 6, TEXT_WIDTH)


@torch.no_grad()
def forward(transformer, latents, time, context="cond"):
    times = torch.full((len(latents),), time)
    return transformer(latents, times, text_of(context, len(latents)), return_dict=False)[0]


def denoised(transformer, latents, context="cond", time=900):
    with transformer.cache_context(context):
        return forward(transformer, latents, time, context)


def committed(transformer, paged, latents, context="cond"):
    with paged.commit_pass():
        return denoised(transformer, latents, context, time=0)


def hook_rollout(transformer, paged, num_videos=1, contexts=("cond",), num_chunks=NUM_CHUNKS):
    """Predictions of every forward of noise chunks, which are as good as anything for random weights."""
    outs = []
    for number in range(num_chunks):
        for time in TIMES:
            with paged.commit_pass() if time == 0 else nullcontext():
                latents = chunk_of(number, num_videos)
                outs += [denoised(transformer, latents, context, time) for context in contexts]
    return outs


# ---------------------------------------------------------------------- parity


@pytest.mark.parametrize(("codec", "correction"), [("fp32", "off"), ("int2", "measured"), ("int4/int2", "formula")])
def test_every_forward_is_that_of_the_processors_by_hand_bit_for_bit(class_name, codec, correction):
    transformer, window = tiny_transformer(class_name), Window(1, 2, positions="window")
    by_hand, codecs = copy.deepcopy(transformer), StreamCodecs(codec)
    paged = enable_paged_cache(transformer, config(window=window, codecs=codecs, correction=correction))
    got = hook_rollout(transformer, paged, num_videos=2, contexts=tuple(TEXTS))

    processors = install(by_hand)
    cache = PagedKVCache(CacheSpec(2, 2, 16, codecs=codecs, correction=correction), "16MiB")
    videos = {context: [cache.open(window, FRAMES * FRAME_TOKENS) for _ in range(2)] for context in TEXTS}
    rope, expected = processors.rope(3, 5), []
    for number in range(NUM_CHUNKS):
        for time in TIMES:
            for context, streams in videos.items():
                opened = cache.commit(streams) if time == 0 else cache.denoise(streams)
                with opened as step, processors.attending(partial(step.attend, rope=rope)):
                    expected.append(forward(by_hand, chunk_of(number, 2), time, context))
    assert len(got) == len(expected) == NUM_CHUNKS * len(TIMES) * 2
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert not torch.equal(got[-1], got[-2]), "contexts differ"


@torch.no_grad()
def test_pages_give_what_the_library_gives_under_its_own_block_mask():
    """SkyReels-V2 has chunk-causal attention of its own, over the whole video in one forward."""
    transformer = tiny_transformer("SkyReelsV2Transformer3DModel")
    dense, text = copy.deepcopy(transformer), text_of("cond")
    dense._set_ar_attention(FRAMES)
    chunks = [chunk_of(number) for number in range(4)]
    times = torch.tensor([[0] * 3 * FRAMES + [700] * FRAMES])
    expected = dense(torch.cat(chunks, dim=2), times, text, enable_diffusion_forcing=True, return_dict=False)[0]

    paged = enable_paged_cache(transformer, config(window=Window(0, 3)))
    got = []
    with transformer.cache_context("cond"):
        for number, latents in enumerate(chunks):
            own_times = times[:, number * FRAMES : (number + 1) * FRAMES]
            with paged.commit_pass():
                got.append(transformer(latents, own_times, text, enable_diffusion_forcing=True, return_dict=False)[0])
    torch.testing.assert_close(torch.cat(got, dim=2), expected, rtol=1e-4, atol=1e-5)
    with transformer.cache_context("other"):
        alone = transformer(chunks[-1], own_times, text, enable_diffusion_forcing=True, return_dict=False)[0]
    assert (alone - expected[:, :, -FRAMES:]).abs().max() > 1e-2, "the history matters"


@torch.no_grad()
def test_pages_give_what_the_librarys_full_attention_gives_in_one_layer():
    """In a single layer keys of the history depend on nothing that comes after them, mask or not."""
    transformer = tiny_transformer("WanTransformer3DModel", num_layers=1)
    chunks, text, size = [chunk_of(number) for number in range(4)], text_of("cond"), FRAMES * FRAME_TOKENS
    times = torch.tensor([[0] * 3 * size + [700] * size])
    expected = transformer(torch.cat(chunks, dim=2), times, text, return_dict=False)[0][:, :, -FRAMES:]

    paged = enable_paged_cache(transformer, config(window=Window(0, 3)))
    for latents in chunks[:-1]:
        committed(transformer, paged, latents)
    torch.testing.assert_close(denoised(transformer, chunks[-1], time=700), expected, rtol=1e-4, atol=1e-5)


def test_sinks_and_window_roll_as_a_dense_rolling_cache_does():
    """Self-Forcing's cache counts the current chunk: 1 sink, 2 recent and the current one are 12 frames."""
    transformer = tiny_transformer("WanTransformer3DModel")
    dense = SelfForcing(copy.deepcopy(transformer), FRAME_TOKENS, sink_frames=FRAMES, cache_frames=4 * FRAMES)
    dense.grid, expected = (3, 5), []
    for number in range(NUM_CHUNKS):
        expected += [forward(dense.transformer, chunk_of(number), time) for time in TIMES]
        dense.start_frame += FRAMES
    got = hook_rollout(transformer, enable_paged_cache(transformer, config()))
    torch.testing.assert_close(torch.cat(got), torch.cat(expected), rtol=1e-4, atol=2e-5)


# ---------------------------------------------------------------------- videos


@pytest.mark.parametrize("by_library", [False, True])
def test_after_a_reset_the_next_video_begins_anew(class_name, by_library):
    transformer = tiny_transformer(class_name)
    paged = enable_paged_cache(transformer, config(codecs=StreamCodecs("int2")))
    first = hook_rollout(transformer, paged, contexts=tuple(TEXTS), num_chunks=3)
    assert len(paged.cache.streams) == 2 and paged.cache.stats().pages_used > 0
    transformer._reset_stateful_cache() if by_library else paged.reset()
    assert paged.cache.streams == () and paged.cache.stats().pages_used == 0
    again = hook_rollout(transformer, paged, contexts=tuple(TEXTS), num_chunks=3)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    paged.reset()
    hook_rollout(transformer, paged, num_videos=3, num_chunks=1)  # another number of videos
    paged.cache.check()


def test_contexts_have_histories_of_their_own():
    transformer = tiny_transformer("WanTransformer3DModel")
    paged = enable_paged_cache(transformer, config())
    alone = denoised(transformer, chunk_of(5), "uncond")
    committed(transformer, paged, chunk_of(0), "cond")
    assert torch.equal(denoised(transformer, chunk_of(5), "uncond"), alone)
    assert sorted(stream.num_committed for stream in paged.cache.streams) == [0, 1]


def test_chunks_may_be_shorter_than_the_longest():
    """A first frame alone, as image-to-video models have it."""
    transformer = tiny_transformer("WanTransformer3DModel")
    paged = enable_paged_cache(transformer, config())
    committed(transformer, paged, chunk_of(0, num_frames=1))
    committed(transformer, paged, chunk_of(1))
    (stream,) = paged.cache.streams
    assert [chunk.num_tokens for chunk in stream.chunks()] == [FRAME_TOKENS, FRAMES * FRAME_TOKENS]


def test_a_commit_pass_that_fails_leaves_the_videos_as_they_were():
    transformer = tiny_transformer("WanTransformer3DModel")
    paged = enable_paged_cache(transformer, config())
    committed(transformer, paged, chunk_of(0))
    expected = denoised(transformer, chunk_of(1))
    with pytest.raises(NonFiniteError):
        committed(transformer, paged, torch.full_like(chunk_of(1), torch.nan))
    assert torch.equal(denoised(transformer, chunk_of(1)), expected)
    paged.cache.check()


def test_videos_that_do_not_fit_take_nothing():
    transformer = tiny_transformer("WanTransformer3DModel")
    paged = enable_paged_cache(transformer, config(memory="400KiB"))
    committed(transformer, paged, chunk_of(0))
    before = paged.cache.stats()
    with pytest.raises(CapacityError, match="needs"):
        denoised(transformer, chunk_of(0, num_videos=40), "uncond")
    assert paged.cache.stats() == before
    committed(transformer, paged, chunk_of(1))


# ---------------------------------------------------------------------- on and off


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
