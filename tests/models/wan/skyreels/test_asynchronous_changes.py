"""What may happen to a SkyReels-V2 video while several of its blocks are in flight, and the pages that it holds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from pagedvid.cache.stream_sizes import planned_peak_pages
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import EngineOutput, VideoRequest
from pagedvid.errors import ConfigError, StateError
from tests.engine.latent_bytes import video_of
from tests.engine.verbs import steps
from tests.models.on_the_way import forked, moved
from tests.models.wan.base.tiny import FRAMES_PER_CHUNK, embeddings, engine_of, generate
from tests.models.wan.skyreels.test_asynchronous import ROWS, windowed
from tests.models.wan.skyreels.test_rollout import BOTH, tiny_model

NUM_STEPS, AR_STEP, NUM_BLOCKS = 4, 2, 7
"""Rounds: the first block is clean after 4, the last one begins with the 13th, and there are 16."""
REQUEST = VideoRequest("a", "", NUM_BLOCKS * FRAMES_PER_CHUNK, 0, {"embeddings": ROWS})
HOW = {"ar_step": AR_STEP, "num_denoise_steps": NUM_STEPS, **windowed(1, 2)}


def new_engine(codec: str = "fp32", **settings) -> Engine:
    correction = "off" if codec == "fp32" else "measured"
    return engine_of(tiny_model(**HOW), codec, correction=correction, **settings)


def frames(outputs: list[EngineOutput], id: str = "a") -> torch.Tensor:
    return torch.from_numpy(video_of(outputs, id))


def undisturbed(num_frames: int = REQUEST.num_frames, codec: str = "fp32") -> torch.Tensor:
    engine = new_engine(codec)
    engine.submit(replace(REQUEST, num_frames=num_frames))
    return frames(list(engine.run()))


@pytest.mark.parametrize("after", [1, 5, 6, 9, 15])
@pytest.mark.parametrize("codec", ["fp32", "int4"])
def test_a_video_goes_on_in_another_engine(after: int, codec: str) -> None:
    outputs = moved(partial(new_engine, codec), REQUEST, after)
    assert torch.equal(frames(outputs), undisturbed(codec=codec))


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_fork_carries_the_blocks_in_flight_with_it(after: int) -> None:
    outputs = forked(new_engine, REQUEST, after)
    whole = undisturbed()
    torch.testing.assert_close(frames(outputs), whole, rtol=0, atol=1e-5)
    later = frames(outputs, "b")
    torch.testing.assert_close(later, whole[len(whole) - len(later) :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("after", [1, 4, 9, 12])
def test_a_video_becomes_longer_while_its_last_block_is_not_alone_in_beginning(after: int) -> None:
    engine, longer = new_engine(), REQUEST.num_frames + 7
    engine.submit(REQUEST)
    outputs = steps(engine, after)
    engine.extend("a", longer)
    outputs += engine.run()
    assert torch.equal(frames(outputs), undisturbed(longer))
    assert engine.cache.pool.num_used_pages == 0


@pytest.mark.parametrize("after", [15, 16])
def test_a_video_does_not_go_on_once_another_block_should_have_begun(after: int) -> None:
    engine = new_engine()
    engine.submit(replace(REQUEST, keep=True))
    outputs = steps(engine, after)
    with pytest.raises(StateError, match="worked on in another order"):
        engine.extend("a", REQUEST.num_frames + 7)
    outputs += engine.run()
    assert torch.equal(frames(outputs), undisturbed())


def test_a_video_that_fits_its_window_becomes_no_longer_than_the_order_of_its_blocks_allows() -> None:
    """4 blocks fit whatever is in flight; of 5, too many would be."""
    engine = engine_of(tiny_model(**{**HOW, "ar_step": 1}))
    engine.submit(replace(REQUEST, num_frames=2 * FRAMES_PER_CHUNK))
    outputs = steps(engine, 1)
    with pytest.raises(ConfigError, match=r"ar_step is 1; with 4 denoise .* Set it to 2 or more"):
        engine.extend("a", 5 * FRAMES_PER_CHUNK)
    engine.extend("a", 4 * FRAMES_PER_CHUNK)
    outputs += engine.run()
    assert len(frames(outputs)) == 4 * FRAMES_PER_CHUNK


@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 2e-5), ("int8", 4e-3)])
@pytest.mark.parametrize(
    "settings", [{}, {"policy": "round_robin"}, {"policy": "round_robin", "max_batch_tokens": 300}]
)
def test_each_video_of_a_batch_is_what_it_is_alone(codec: str, tolerance: float, settings) -> None:
    rows = {"a": ROWS, "b": embeddings(4, BOTH), "c": embeddings(5, BOTH)}
    lengths = [NUM_BLOCKS * FRAMES_PER_CHUNK, 5 * FRAMES_PER_CHUNK, 4]
    engine = new_engine(codec, **settings)
    together: list[EngineOutput] = []
    for number, (id, length) in enumerate(zip(rows, lengths, strict=True)):
        engine.submit(VideoRequest(id, "", length, number, {"embeddings": rows[id]}))
        together += steps(engine, 3)
    together += engine.run()
    for number, (id, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = generate(new_engine(codec), {id: rows[id]}, [length], first_seed=number)[id]
        torch.testing.assert_close(frames(together, id), alone, rtol=0, atol=tolerance)
    assert engine.cache.pool.num_used_pages == 0


@pytest.mark.parametrize("codec", ["fp32", "int2"])
@pytest.mark.parametrize("num_blocks", [1, 3, NUM_BLOCKS, 12])
def test_the_estimate_is_what_the_engine_reserves_and_uses(codec: str, num_blocks: int) -> None:
    model, num_frames = tiny_model(**HOW), num_blocks * FRAMES_PER_CHUNK
    engine = engine_of(model, codec)
    engine.submit(replace(REQUEST, num_frames=num_frames))
    engine.step()
    condition = model.prepare("", REQUEST.inputs, num_frames)
    schedule = model.schedule(condition, num_frames, None, Window(3, 9))
    commits = schedule.planned_commits(model.geometry.tokens_per_frame)
    spec = engine.cache.spec
    estimate = 2 * planned_peak_pages(spec.shape, schedule.window, spec.codecs, commits)
    assert engine.cache.reserved_pages == estimate
    list(engine.run())
    assert engine.cache.pool.peak_used_pages == estimate


def test_a_stored_block_leaves_when_another_begins_and_sinks_stay() -> None:
    """Block 3 is clean with the round that is the 10th, and block 6 begins with the 13th."""
    engine = new_engine()
    engine.submit(REQUEST)
    kept = []
    for _ in range(16):
        engine.step()
        kept.append({branch: list(history.chunks) for stream in engine.cache.streams
                     for branch, history in stream.branches.items()})  # fmt: skip
    assert kept[9] == {"cond": [0], "uncond": [0]}
    assert kept[10] == {"cond": [0, 3], "uncond": [0, 3]}
    assert kept[11] == {"cond": [0], "uncond": [0]}
    assert kept[14] == {"cond": [0, 4, 5], "uncond": [0, 4, 5]}
    assert kept[15] == {}
