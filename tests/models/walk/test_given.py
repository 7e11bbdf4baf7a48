"""Walks that go on from given frames: where these are, and what is made of them."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import Decoder
from pagedvid.engine.requests import ChunkOutput, Continuation, VideoRequest
from pagedvid.errors import ConfigError, PromptError
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.walk import given
from pagedvid.models.walk.actions import MOVES, Walk, read_walk
from pagedvid.models.walk.given import actions_between
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.spec import CHUNK_TOKENS, TOKENS_PER_FRAME, VIEW_CELLS, frame_latents, frames_of
from pagedvid.models.walk.world import render
from tests.engine.latent_bytes import frames_of_latents, latents_of_frames
from tests.engine.verbs import steps
from tests.models.on_the_way import forks_of_given_chunks
from tests.models.walk.dense import dense_latents
from tests.models.walk.untrained import engine_of, random_network

WINDOW = Window(0, 3, "given")
PROMPT = "left 2, up 3"


@pytest.fixture(scope="module")
def model() -> WalkModel:
    return WalkModel.of(random_network())


def seen_on(map_seed: int, walk: str, num_frames: int) -> Tensor:
    """Frames of a map, uint8 [num_frames, 64, 64, 3]."""
    places = read_walk(walk).places(num_frames).tolist()
    return torch.from_numpy(np.stack([render(map_seed, *place, VIEW_CELLS, VIEW_CELLS) for place in places]))


def request(name: str = "a", prompt: str = PROMPT, num_given: int = 6, num_frames: int = 7, **settings) -> VideoRequest:
    frames = seen_on(5, "right 3, down 2", num_given)
    return VideoRequest(name, prompt, num_frames, seed=3, inputs={"prefix": {"frames": frames}}, **settings)


def videos(engine: Engine, *requests: VideoRequest) -> dict[str, np.ndarray]:
    for it in requests:
        engine.submit(it)
    return collected(engine.run())


def collected(outputs) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    for output in outputs:
        assert isinstance(output, ChunkOutput), output
        parts.setdefault(output.request_id, []).append(output.frames)
    return {id: np.concatenate(frames) for id, frames in parts.items()}


def engine_for(model: WalkModel, codec: str = "fp32") -> Engine:
    return engine_of(model, codec, WINDOW, reproducible=True)


@pytest.mark.parametrize("noise", [0, 12])
@pytest.mark.parametrize("map_seed", [0, 1, 2])
def test_actions_are_read_off_frames(map_seed: int, noise: int):
    rng = np.random.default_rng(map_seed)
    actions = [*MOVES, *(list(MOVES)[number] for number in rng.integers(9, size=60))]
    frames = seen_on(map_seed, ", ".join(actions), len(actions) + 1).numpy()
    coded = (frames.astype(int) + rng.integers(-noise, noise + 1, frames.shape)).clip(0, 255).astype(np.uint8)
    assert list(actions_between(torch.from_numpy(coded))) == actions


def test_where_no_move_can_be_seen_the_walk_goes_on_as_before():
    lake = torch.randint(98, 103, (5, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert actions_between(lake) == ("stay",) * 4
    onto_it = torch.cat([seen_on(5, "down 1", 2), lake])
    onto_it[2] = torch.cat([onto_it[1, 8:], lake[0, 56:]])
    onto_it[3] = torch.cat([onto_it[2, 8:], lake[1, 56:]])
    assert actions_between(onto_it[:4]) == ("down",) * 3


def test_a_picture_stands_still():
    frames = seen_on(7, "stay", 2)
    assert actions_between(frames) == actions_between(torch.zeros_like(frames)) == ("stay",)


def test_what_is_no_walk_is_refused(model: WalkModel):
    frames = torch.cat([seen_on(3, "left 9", 4), seen_on(4, "left 9", 2)])
    with pytest.raises(
        ConfigError, match="frame 4 does not show what frame 3 shows, moved by one cell of 8 x 8 pixels"
    ):
        model.prepare(PROMPT, {"prefix": {"frames": frames}}, 4)
    with pytest.raises(
        ConfigError, match="there are 3 frames to go on from; walk takes those of whole chunks: 2, 4, 6"
    ):
        model.prepare(PROMPT, {"prefix": {"frames": frames[:3]}}, 4)
    with pytest.raises(PromptError, match="goes on from given frames, and the prompt 'map 3: left' names a map"):
        model.prepare("map 3: left", {"prefix": {"frames": frames[:4]}}, 4)


def test_given_frames_are_encoded_as_they_are_decoded():
    frames = seen_on(6, "up 9", 4)
    assert np.array_equal(frames_of(frame_latents(frames)), frames.numpy())


class LatentWalk(WalkModel):
    """The walk model whose frames are its latents, bit by bit."""

    def decoder(self, condition: Walk) -> Decoder:
        return StatelessDecoder(lambda latents_TC: frames_of_latents(latents_TC, len(latents_TC) // TOKENS_PER_FRAME))


@pytest.mark.parametrize("num_given", [2, 6, 10])
def test_the_walk_goes_on_as_the_dense_loop_does(model: WalkModel, num_given: int):
    """Ten given frames are more than the window keeps."""
    video = request(num_given=num_given, num_frames=8)
    dense = dense_latents(model, PROMPT, 3, num_given // 2 + 4, 3, video.inputs, num_given // 2)
    latent_model = LatentWalk(**{field.name: getattr(model, field.name) for field in fields(model)})
    latents = latents_of_frames(videos(engine_for(latent_model), video)["a"])
    expected = dense[num_given // 2 * CHUNK_TOKENS :]
    assert latents.shape == expected.shape
    assert float((latents - expected).abs().max()) <= 1e-4


def test_a_walk_from_frames_of_a_map_is_the_walk_on_that_map(model: WalkModel):
    """The same two frames are given by the map's name in one, and as frames in the other."""
    whole = videos(engine_for(model), VideoRequest("a", "map 5: right 4, up 3", 9, seed=3))["a"]
    later = request(prompt="right 3, up 3", num_given=2)
    latents_chunks = videos(engine_for(model), later)["a"]
    assert np.array_equal(latents_chunks, whole[2:])


def test_forks_share_given_frames_and_copy_no_page(model: WalkModel):
    frames = collected(forks_of_given_chunks(engine_for(model), request(), 3))
    alone = videos(engine_for(model), request(), replace(request("c"), seed=9))
    assert np.array_equal(frames["a"], alone["a"]) and np.array_equal(frames["b"], alone["a"])
    assert np.array_equal(frames["c"], alone["c"]) and not np.array_equal(frames["c"], frames["a"])


def test_a_fork_of_given_frames_goes_another_way(model: WalkModel):
    engine = engine_for(model)
    engine.submit(request())
    outputs = steps(engine, 3)
    engine.fork("a", [Continuation("b", prompt="down 9")])
    frames = collected([*outputs, *engine.run()])
    assert np.array_equal(frames["b"], videos(engine_for(model), request("b", "down 9"))["b"])


@pytest.mark.parametrize("after", [0, 2, 3, 4, 6, 8])
def test_it_is_steered_on_the_way(model: WalkModel, after: int):
    engine = engine_for(model)
    engine.submit(request())
    outputs = steps(engine, after)
    engine.prompt("a", "down-right 9")
    frames = collected([*outputs, *engine.run()])["a"]
    begun = max(0, 2 * -(-(after - 3) // 3))
    actions = ["left", "left", "up", "up", "up", "stay", "stay"][:begun]
    whole = ", ".join([*actions, "down-right 9"])
    assert np.array_equal(frames, videos(engine_for(model), request(prompt=whole))["a"])


def test_moves_are_looked_for_once_however_often_the_walk_is_steered(model: WalkModel, monkeypatch):
    looked: list[int] = []
    monkeypatch.setattr(given, "actions_between", lambda frames: looked.append(len(frames)) or actions_between(frames))
    engine = engine_of(model, "fp32", WINDOW)
    engine.submit(request())
    for turn in ("down", "left 2", "up"):
        steps(engine, 4)
        engine.prompt("a", turn)
    collected(engine.run())
    assert looked == [6]
    videos(engine_of(model, "fp32", WINDOW), request())
    assert looked == [6, 6], "other frames that look alike"
