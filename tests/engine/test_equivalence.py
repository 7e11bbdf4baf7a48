"""The paged engine against a plain dense loop, and a video alone against the same video in company."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.requests import VideoRequest
from tests.engine.dense_reference import as_bf16, as_given, dense_video
from tests.engine.latent_bytes import latents_of_frames, video_of
from tests.engine.toy_model import CHUNK_TOKENS, FRAMES_PER_CHUNK, ToyModel, assert_all_pages_free, toy_engine

BRANCHES = [("cond",), ("cond", "uncond")]
NUM_CHUNKS = 4


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def paged_videos(
    model: ToyModel, codecs: StreamCodecs | str, numbers: Iterable[int], window: tuple[int, int] = (1, 1), **settings
) -> dict[int, Tensor]:
    """Latents of the videos "0", "1", ..., generated together; the number is prompt and seed."""
    engine = toy_engine(model, codecs, window, **settings)
    for number in numbers:
        engine.submit(VideoRequest(str(number), str(number), NUM_CHUNKS * FRAMES_PER_CHUNK, seed=number))
    outputs = list(engine.run())
    assert_all_pages_free(engine)
    return {number: latents_of_frames(video_of(outputs, str(number))) for number in numbers}


@pytest.mark.parametrize("branches", BRANCHES, ids="+".join)
@pytest.mark.parametrize("positions", ["window", "absolute"])
@pytest.mark.parametrize("window", [(1, 1), (0, 2), (2, 1)], ids=str)
def test_lossless_pages_equal_the_dense_loop(window, positions, branches):
    """Measured 1e-6; a window with other chunks in it gives something else altogether."""
    model = ToyModel(branches, positions)
    paged = paged_videos(model, "fp32", [3], window)[3]
    expected = dense_video(model, "3", 3, NUM_CHUNKS, 2, Window(*window, positions=positions))
    assert largest_difference(paged, expected) <= 1e-4
    elsewhere = dense_video(model, "3", 3, NUM_CHUNKS, 2, Window(0, 1, positions=positions))
    assert largest_difference(paged, elsewhere) > 0.02


@pytest.mark.parametrize("branches", BRANCHES, ids="+".join)
@pytest.mark.parametrize("positions", ["window", "absolute"])
def test_bf16_pages_equal_the_dense_loop_with_rounded_keys_and_values(positions, branches):
    """Keys are rounded before rotary embedding. The tolerance is for float32 noise that tips a value to its
    neighbour in bf16."""
    model, window = ToyModel(branches, positions), Window(1, 1, positions=positions)
    paged = paged_videos(model, "bf16", [3])[3]
    assert largest_difference(paged, dense_video(model, "3", 3, NUM_CHUNKS, 2, window, as_bf16)) <= 1e-4
    assert largest_difference(paged, dense_video(model, "3", 3, NUM_CHUNKS, 2, window, as_given)) > 3e-4


@pytest.mark.parametrize(
    "codecs",
    [
        StreamCodecs("int2"),
        StreamCodecs("int4"),
        StreamCodecs("int8"),
        StreamCodecs("int2", sink="int8", newest="bf16"),
    ],
    ids=str,
)
def test_fewer_bits_stay_near_the_dense_loop(codecs):
    """Wrong chunks in the window move the video by more than 0.1, which no codec may do."""
    model = ToyModel()
    paged = paged_videos(model, codecs, [3])[3]
    difference = largest_difference(paged, dense_video(model, "3", 3, NUM_CHUNKS, 2, Window(1, 1, positions="window")))
    assert 1e-6 < difference < 0.03


@pytest.mark.parametrize("branches", BRANCHES, ids="+".join)
@pytest.mark.parametrize("codec", ["fp32", "int2"])
def test_a_video_does_not_depend_on_its_company(codec, branches):
    """With any policy, token budget and number of slots. Int2 gets more tolerance: shapes of matrix products differ
    with the batch, and float32 noise may tip a value to the next of four levels."""
    model, numbers = ToyModel(branches), range(3)
    tolerance = 1e-5 if codec == "fp32" else 1e-3
    alone = {number: paged_videos(model, codec, [number])[number] for number in numbers}
    assert min(largest_difference(alone[0], alone[number]) for number in (1, 2)) > 0.5
    for settings in (
        {"max_batch_tokens": 1000},
        {"max_batch_tokens": 4 * CHUNK_TOKENS, "policy": "round_robin"},
        {"max_concurrent": 2, "policy": "round_robin"},
    ):
        together = paged_videos(model, codec, numbers, **settings)
        for number in numbers:
            assert largest_difference(together[number], alone[number]) <= tolerance, (settings, number)


def test_seed_and_prompt_decide_the_video():
    engine = toy_engine(ToyModel())
    for id, prompt, seed in (("a", "1", 5), ("again", "1", 5), ("other seed", "1", 6), ("other prompt", "2", 5)):
        engine.submit(VideoRequest(id, prompt, 6, seed))
    outputs = list(engine.run())
    a, again, other_seed, other_prompt = (
        latents_of_frames(video_of(outputs, id)) for id in ("a", "again", "other seed", "other prompt")
    )
    assert torch.allclose(a, again, atol=1e-5)
    assert largest_difference(a, other_seed) > 0.5 and largest_difference(a, other_prompt) > 0.1
