"""Random arrivals, faults and cancellations: every video runs its denoise steps in order, then at most one commit.

I15 every (video, chunk) runs steps 0..S-1 in order, then one commit pass unless it is the last chunk; all branches
together. After every step the cache is checked from scratch; at the end all of it is free.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.engine.requests import ChunkOutput, EngineOutput, RequestFailure, VideoRequest
from pagedvid.errors import ConfigError
from tests.engine.toy_model import CHUNK_TOKENS, FRAMES_PER_CHUNK, ToyModel, assert_all_pages_free, toy_engine

NO_NOISE = "no noise for chunk 1"
FAULTS = ["", "", "", "raises@1.0", "raises@0.0", "nan@1.0", "nan@0.0", NO_NOISE]


@dataclass
class Visitor:
    """One video as the test draws it, and what became of it."""

    number: int
    arrival_step: int
    num_frames: int
    fault: str
    cancel_step: int | None
    outputs: list[EngineOutput] = field(default_factory=list)
    is_submitted: bool = False
    is_cancelled: bool = False

    @property
    def request(self) -> VideoRequest:
        prompt = str(self.number) if self.fault == NO_NOISE else f"{self.number} {self.fault}".strip()
        return VideoRequest(f"video {self.number}", prompt, self.num_frames, -2 if self.fault == NO_NOISE else 0)

    @property
    def has_ended(self) -> bool:
        return bool(self.outputs) and (isinstance(self.outputs[-1], RequestFailure) or self.outputs[-1].is_last)

    def expected(self, denoise_levels: list[float]) -> tuple[list[float], int, bool]:
        """Noise levels of its completed forwards, number of chunks that come out, and whether it fails."""
        num_chunks = -(-self.num_frames // FRAMES_PER_CHUNK)
        if self.fault == "raises@1.0":
            return [], 0, True
        if self.fault == "nan@1.0":
            return denoise_levels, 0, True
        if self.fault and num_chunks > 1:
            return denoise_levels + [0.0] * (self.fault == NO_NOISE), 1, True
        return ([*denoise_levels, 0.0] * num_chunks)[:-1], num_chunks, False


VISITORS = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(1, 4 * FRAMES_PER_CHUNK),
        st.sampled_from(FAULTS),
        st.none() | st.integers(0, 25),
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: [Visitor(number, *row) for number, row in enumerate(rows)])


def cancel(engine, visitor: Visitor) -> None:
    if not visitor.is_submitted or visitor.has_ended:
        with pytest.raises(ConfigError, match="neither waiting nor running"):
            engine.cancel(visitor.request.id)
    else:
        engine.cancel(visitor.request.id)
        visitor.is_cancelled = True


def live_through(engine, visitors: list[Visitor]) -> None:
    """Runs until everybody has come and gone."""
    by_id = {visitor.request.id: visitor for visitor in visitors}
    last_arrival = max(visitor.arrival_step for visitor in visitors)
    for step in range(200):
        for visitor in visitors:
            if visitor.arrival_step == step:
                engine.submit(visitor.request)
                visitor.is_submitted = True
            if visitor.cancel_step == step:
                cancel(engine, visitor)
        if step > last_arrival and not engine.has_work:
            return
        num_forwards = len(engine.model.forwards)
        for output in engine.step():
            assert not by_id[output.request_id].has_ended and not by_id[output.request_id].is_cancelled
            by_id[output.request_id].outputs.append(output)
        ranges = Counter(part for forward in engine.model.forwards[num_forwards:] for part in forward)
        assert all(count == 1 for count in ranges.values()), "a video ran twice in one step"
    raise AssertionError("videos are still running after 200 steps")


@given(
    visitors=VISITORS,
    branches=st.sampled_from([("cond",), ("cond", "uncond")]),
    policy=st.sampled_from(["fcfs", "round_robin"]),
    max_batch_tokens=st.sampled_from([1, 3 * CHUNK_TOKENS, 5 * CHUNK_TOKENS]),
    max_concurrent=st.none() | st.integers(1, 3),
    num_denoise_steps=st.integers(1, 3),
    num_peaks=st.sampled_from([1.0, 1.4, 2.7]),
)
def test_every_video_runs_its_steps_in_order(
    visitors, branches, policy, max_batch_tokens, max_concurrent, num_denoise_steps, num_peaks
):
    engine = toy_engine(
        ToyModel(branches),
        "bf16",
        num_pages=int(num_peaks * len(branches) * 48),
        policy=policy,
        max_batch_tokens=max_batch_tokens,
        max_concurrent=max_concurrent,
        num_denoise_steps=num_denoise_steps,
    )
    live_through(engine, visitors)
    assert_all_pages_free(engine)
    forwards, denoise_levels = engine.model.forwards, list(engine.model.noise_levels(num_denoise_steps)[:-1])
    for forward in forwards:
        num_videos = len(forward) // len(branches)
        assert num_videos == 1 or len(forward) * CHUNK_TOKENS <= max_batch_tokens
        assert max_concurrent is None or num_videos <= max_concurrent
        for first in range(0, len(forward), len(branches)):
            prompt, _, level = forward[first]
            assert forward[first : first + len(branches)] == [(prompt, branch, level) for branch in branches]
    for visitor in visitors:
        levels, num_chunks, fails = visitor.expected(denoise_levels)
        ran = [level for forward in forwards for prompt, branch, level in forward
               if (prompt, branch) == (visitor.request.prompt, "cond")]  # fmt: skip
        chunks = [output for output in visitor.outputs if isinstance(output, ChunkOutput)]
        assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
        if visitor.is_cancelled:
            assert ran == levels[: len(ran)] and len(chunks) <= num_chunks
            continue
        assert ran == levels and len(chunks) == num_chunks
        assert isinstance(visitor.outputs[-1], RequestFailure) == fails
        if not fails:
            assert sum(len(chunk.frames) for chunk in chunks) == visitor.num_frames
