"""The paged cache as a hook of diffusers: against the processors by hand and dense attention; videos come and go."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import CapacityError, NonFiniteError
from pagedvid.integrations.diffusers import SUPPORTED, install
from pagedvid.integrations.diffusers_cache import enable_paged_cache
from pagedvid.paged_kv_cache import PagedKVCache
from tests.integrations.diffusers_rollouts import (
    FRAME_TOKENS,
    FRAMES,
    NUM_CHUNKS,
    TEXTS,
    TIMES,
    chunk_of,
    committed,
    config,
    denoised,
    forward,
    hook_rollout,
    text_of,
)
from tests.models.wan.base.tiny import tiny_transformer
from tests.models.wan.causal.self_forcing import SelfForcing


@pytest.fixture(params=SUPPORTED)
def class_name(request):
    return request.param


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
