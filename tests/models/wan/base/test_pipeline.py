"""Wan models in the engine: batches, bfloat16, decoders, and transformers that do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pagedvid.engine.schedule import Range
from pagedvid.errors import ConfigError, ShapeError
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.wan.base.spec import shape_of
from tests.models.wan.base.forwards import denoise_after_commits, relative_error
from tests.models.wan.base.tiny import (
    COLUMNS,
    FRAMES_PER_CHUNK,
    NUM_CHANNELS,
    ROWS,
    embeddings,
    engine_of,
    generate,
    tiny_transformer,
)
from tests.models.wan.causal.test_rollout import tiny_model as tiny_wan
from tests.models.wan.skyreels.test_rollout import tiny_model as tiny_skyreels

MODELS = {"wan-causal": tiny_wan, "skyreels": tiny_skyreels}
WITHOUT_GUIDANCE = {"wan-causal": {}, "skyreels": {"guidance_scale": 1.0}}
BRANCHES = {"wan-causal": ("cond",), "skyreels": ("cond", "uncond")}


@pytest.fixture(params=list(MODELS))
def name(request):
    return request.param


@pytest.mark.parametrize(("codec", "allowed"), [("fp32", 1e-5), ("int2", 0.05)])
def test_two_videos_in_one_batch_are_each_what_they_are_alone(name, codec, allowed):
    """Of different length, prompt and seed. The library's matrix products round differently for another batch; in rare
    places that flips a two-bit code, which is far from what the neighbour's keys or noise would do."""
    model = MODELS[name]()
    videos = {id: embeddings(number, BRANCHES[name]) for number, id in enumerate(("a", "b"))}
    num_frames = [4 * FRAMES_PER_CHUNK, 2 * FRAMES_PER_CHUNK + 1]
    together = generate(engine_of(model, codec, correction="measured"), videos, num_frames)
    for number, (id, rows) in enumerate(videos.items()):
        alone = generate(
            engine_of(model, codec, correction="measured"), {id: rows}, [num_frames[number]], first_seed=number
        )
        assert together[id].shape == (num_frames[number], NUM_CHANNELS, ROWS, COLUMNS)
        assert relative_error(together[id], alone[id]) < allowed
    assert relative_error(together["a"][:3], together["b"][:3]) > 0.5


def test_ranges_of_different_noise_and_role_share_a_forward(name):
    """A packed forward of two ranges is what two forwards give."""
    model = MODELS[name]()
    size = model.geometry.chunk_tokens
    conditions = [model.prepare("", {"embeddings": embeddings(seed, BRANCHES[name])}, 0) for seed in (0, 1)]
    frames = range(model.geometry.frames_per_chunk)
    ranges = [Range(frames, 0.9, "cond"), Range(frames, 0.4, BRANCHES[name][-1])]
    latents = [model.initial_latents(conditions[0], seed, 0) for seed in (0, 1)]

    def own_tokens(layer, q, k, v, **how):
        q, k, v = (x.unflatten(0, (-1, size)).transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)

    packed = model.forward(torch.cat(latents), ranges, conditions, own_tokens)
    apart = [
        model.forward(x, [part], [own], own_tokens) for x, part, own in zip(latents, ranges, conditions, strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [False, True], ids=["all", "as-loaded"])
def test_bfloat16_weights_give_nearly_the_same(name, kept):
    """As the library loads them, some modules stay in float32."""
    model = MODELS[name](**WITHOUT_GUIDANCE[name])
    exact = denoise_after_commits(model, "fp32").velocity
    model.transformer.to(torch.bfloat16)
    if kept:
        for part, parameter in model.transformer.named_parameters():
            if any(word in part for word in model.transformer._keep_in_fp32_modules):
                parameter.data = parameter.data.float()
    rounded = denoise_after_commits(model, "bf16").velocity
    assert rounded.dtype == torch.float32
    assert 0 < relative_error(rounded, exact) < 0.03


def test_a_transformer_that_came_in_bfloat16_has_unrounded_positions():
    transformer = tiny_transformer("WanTransformer3DModel")
    exact = tiny_wan(tiny_transformer("WanTransformer3DModel")).rope.tables(450, 45)
    rounded = tiny_wan(transformer.to(torch.bfloat16)).rope.tables(450, 45)
    assert all(torch.equal(a, b) for a, b in zip(exact, rounded, strict=True))


def test_latents_or_decoded_frames_go_out(name):
    """A decoder is made for each video, and gets its latent frames in order."""
    made = []

    def new_decoder():
        seen = []
        made.append(seen)

        def decode(latents_FCRS):
            seen.append(latents_FCRS.clone())
            return np.full((4 * len(latents_FCRS), 8, 8, 3), len(seen), np.uint8)

        return StatelessDecoder(decode)

    videos = {id: embeddings(number, BRANCHES[name]) for number, id in enumerate(("a", "b"))}
    num_frames = [2 * FRAMES_PER_CHUNK, FRAMES_PER_CHUNK]
    plain = MODELS[name]()
    latents = generate(engine_of(plain), videos, num_frames)
    model = type(plain)(plain.transformer, plain.settings, decoder=new_decoder)
    frames = generate(engine_of(model), videos, num_frames)
    assert [len(seen) for seen in made] == [2, 1]
    for seen, id in zip(made, videos, strict=True):
        torch.testing.assert_close(torch.cat(seen), latents[id], rtol=1e-5, atol=1e-5)
    assert frames["a"].shape == (8 * FRAMES_PER_CHUNK, 8, 8, 3)
    assert model.frames_per_second == 4 * plain.frames_per_second == plain.settings.fps


def test_a_range_that_is_no_whole_chunk_is_refused(name):
    model = MODELS[name]()
    condition = model.prepare("", {"embeddings": embeddings(0, BRANCHES[name])}, 0)
    latents = model.initial_latents(condition, 0, 0)
    ranges = [Range(range(1), 0.5), Range(range(1, 3), 0.5)]
    with pytest.raises(ShapeError, match=r"ranges of \[15, 30\] tokens for 45.*chunk of 45"):
        model.forward(latents, ranges, [condition] * 2, lambda *_: pytest.fail("not reached"))


def test_transformers_for_more_than_text_to_video_are_refused():
    config = tiny_transformer("WanTransformer3DModel").config
    with pytest.raises(ConfigError, match=r"9 channels and gives 4.*text-to-video"):
        shape_of(_changed(config, in_channels=9))
    with pytest.raises(ConfigError, match=r"patch_size is \(2, 2, 2\)"):
        shape_of(_changed(config, patch_size=(2, 2, 2)))


def test_a_resolution_that_patches_cut_is_refused():
    model = tiny_wan()
    with pytest.raises(ConfigError, match="7 x 10 positions"):
        type(model)(tiny_transformer("WanTransformer3DModel"), replace(model.settings, latent_rows=7))


def _changed(config, **changes):
    return type("Config", (), {**config, **changes})
