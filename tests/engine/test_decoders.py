"""Every video has a decoder of its own: it is given the video's frames once, in order, and none beyond the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pagedvid.engine.requests import ChunkOutput, RequestFailure, VideoRequest
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK, TOKENS_PER_FRAME, ToyModel, assert_all_pages_free, toy_engine


class Sums:
    """A decoder whose frames are sums over all latents of the video so far, as of a VAE that looks back."""

    def __init__(self):
        self.total = torch.zeros(1)

    def __call__(self, latents_TC):
        frames_Fnc = latents_TC.unflatten(0, (-1, TOKENS_PER_FRAME))
        sums_F = self.total + frames_Fnc.sum((1, 2)).cumsum(0)
        self.total = sums_F[-1:]
        return sums_F.numpy().view(np.uint8).reshape(-1, 1, 4, 1).repeat(3, axis=3)

    def state(self):
        return {"total": self.total}

    def restore(self, state):
        self.total = state["total"]


class RunningSum(ToyModel):
    def decoder(self, condition):
        if condition.phase == 13:
            raise ValueError("no decoder for 13")
        return Sums()


def latents_of(prompt, seed, num_frames):
    """Clean latents of a whole video that is generated alone, [frames, tokens, C]."""
    model = ToyModel()
    engine = toy_engine(model)
    engine.submit(VideoRequest("alone", prompt, num_frames, seed))
    frames = np.ascontiguousarray(video_of(list(engine.run()), "alone"))
    return torch.from_numpy(frames.reshape(num_frames, TOKENS_PER_FRAME, -1).view(np.float32).copy())


def test_decoders_keep_their_state_from_chunk_to_chunk_and_apart_from_each_other():
    engine = toy_engine(RunningSum(), policy="round_robin")
    sizes = {"1": 2 * FRAMES_PER_CHUNK + 1, "2": 3 * FRAMES_PER_CHUNK, "3": 1}
    for number, num_frames in sizes.items():
        engine.submit(VideoRequest(number, number, num_frames, seed=int(number)))
    outputs = list(engine.run())
    for number, num_frames in sizes.items():
        chunks = [o for o in outputs if isinstance(o, ChunkOutput) and o.request_id == number]
        assert len(chunks) == -(-num_frames // FRAMES_PER_CHUNK)  # frames come out chunk by chunk, the state is kept
        video = np.ascontiguousarray(video_of(outputs, number)[..., 0])
        expected = latents_of(number, int(number), num_frames).sum((1, 2)).cumsum(0)
        torch.testing.assert_close(torch.from_numpy(video.reshape(-1, 4).view(np.float32)[:, 0].copy()), expected)


def test_a_video_without_a_decoder_fails_alone():
    engine = toy_engine(RunningSum())
    for number in ("1", "13", "2"):
        engine.submit(VideoRequest(number, number, FRAMES_PER_CHUNK, seed=1))
    outputs = list(engine.run())
    failures = [output for output in outputs if isinstance(output, RequestFailure)]
    assert [failure.request_id for failure in failures] == ["13"]
    assert str(failures[0].error) == "no decoder for 13"
    assert len(outputs) == 3
    assert_all_pages_free(engine)


@pytest.mark.parametrize("num_frames", [1, FRAMES_PER_CHUNK - 1, FRAMES_PER_CHUNK, FRAMES_PER_CHUNK + 1])
def test_surplus_frames_are_not_decoded(num_frames):
    given = []

    class Watched(ToyModel):
        def decode(self, latents_TC):
            given.append(len(latents_TC) // TOKENS_PER_FRAME)
            return super().decode(latents_TC)

    engine = toy_engine(Watched())
    engine.submit(VideoRequest("a", "1", num_frames))
    list(engine.run())
    assert sum(given) == num_frames
