"""Whatever a model raises about one video, wherever it does so, is the failure of that video alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
from torch import Tensor

from pagedvid.engine.failures import MOST_CHARACTERS, described, presentable
from pagedvid.engine.requests import RequestFailure, VideoRequest
from pagedvid.engine.schedule import Round
from pagedvid.errors import ModelError
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from tests.engine.latent_bytes import latents_of_frames, video_of
from tests.engine.toy_model import ToyCondition, ToyModel, assert_all_pages_free, toy_engine

BAD = "3"
"""The prompt of the video for which the model breaks."""
OTHERS = {"a": "1", "z": "2"}
"""Prompts of the videos before and after it."""
AT_SUBMIT = ("prepare", "schedule")
WHILE_RUNNING = ("rounds", "initial_latents", "forward", "advance", "decoder", "decode")


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no words")


class NoText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


def raising(error: Exception) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def too_deep() -> None:
    too_deep()


FAULTS: dict[str, Callable[[], None]] = {
    "value": raising(ValueError("no")),
    "memory": raising(MemoryError()),
    "recursion": too_deep,
    "unicode": lambda: print("\ud800".encode()),
    "stop": raising(StopIteration("over")),
    "assertion": raising(AssertionError()),
    "surrogate": raising(OSError("the file \udcff is gone")),
    "speechless": raising(Speechless()),
    "no text": raising(NoText()),
    "megabyte": raising(RuntimeError("x" * 2**20)),
}
UNFIT = ("memory", "assertion", "surrogate", "speechless", "no text", "megabyte")
"""Faults whose message cannot be shown as it is."""


@dataclass
class Broken(ToyModel):
    """Raises for one video in one place: at its start, or else after its first chunk."""

    place: str = ""
    fault: Callable[[], None] = too_deep
    num_advances: int = 0

    def breaks(self, place: str, prompt: str, is_time: bool = True) -> None:
        if (place, prompt) == (self.place, BAD) and is_time:
            self.fault()

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> Any:
        self.breaks("prepare", prompt)
        return super().prepare(prompt, inputs, num_frames)

    def schedule(self, condition: ToyCondition, *how: Any) -> Any:
        self.breaks("schedule", condition.prompt)
        plan = super().schedule(condition, *how)

        def rounds() -> Iterator[Round]:
            for number, round_ in enumerate(plan.rounds()):
                self.breaks("rounds", condition.prompt, number == 4)
                yield round_

        return replace(plan, rounds=rounds)

    def initial_latents(self, condition: ToyCondition, seed: int, chunk_index: int) -> Tensor:
        self.breaks("initial_latents", condition.prompt, chunk_index == 1)
        return super().initial_latents(condition, seed, chunk_index)

    def forward(self, latents_TC: Tensor, ranges: Sequence[Any], conditions: Sequence[Any], attend: Any) -> Tensor:
        out = super().forward(latents_TC, ranges, conditions, attend)
        for part, condition in zip(ranges, conditions, strict=True):
            self.breaks("forward", condition.prompt, part.frames[0] > 0)
        return out

    def advance(self, latents_TC: Tensor, *how: Any) -> Tensor:
        self.num_advances += 1
        self.breaks("advance", BAD, self.num_advances == 5)  # the second of three videos in the second step
        return super().advance(latents_TC, *how)

    def decoder(self, condition: ToyCondition) -> Any:
        self.breaks("decoder", condition.prompt)

        def decode(latents_TC: Tensor) -> Any:
            self.breaks("decode", condition.prompt)
            return self.decode(latents_TC)

        return StatelessDecoder(decode)


@lru_cache
def alone(prompt: str) -> Tensor:
    engine = toy_engine()
    engine.submit(VideoRequest("alone", prompt, 9, seed=int(prompt)))
    return latents_of_frames(video_of(list(engine.run()), "alone"))


def assert_others_are_whole(outputs: list[Any]) -> None:
    for id, prompt in OTHERS.items():
        together = latents_of_frames(video_of(outputs, id))
        assert together.shape == alone(prompt).shape and (together - alone(prompt)).abs().max() <= 1e-5


def assert_can_be_shown(error: Exception, fault: str) -> None:
    text = str(error)
    text.encode()
    assert 0 < len(text) < MOST_CHARACTERS + 100
    assert isinstance(error, ModelError) == (fault in UNFIT)
    assert error.__traceback__ is None


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", WHILE_RUNNING)
def test_a_running_video_fails_alone(place, fault):
    engine = toy_engine(Broken(place=place, fault=FAULTS[fault]))
    for id, prompt in (("a", OTHERS["a"]), ("bad", BAD), ("z", OTHERS["z"])):
        engine.submit(VideoRequest(id, prompt, 9, seed=int(prompt)))
    outputs = list(engine.run())
    assert_all_pages_free(engine)
    (failure,) = (output for output in outputs if isinstance(output, RequestFailure))
    assert failure.request_id == "bad"
    assert_can_be_shown(failure.error, fault)
    assert_others_are_whole(outputs)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", AT_SUBMIT)
def test_a_video_that_cannot_be_prepared_is_refused(place, fault):
    engine = toy_engine(Broken(place=place, fault=FAULTS[fault]))
    engine.submit(VideoRequest("a", OTHERS["a"], 9, seed=1))
    with pytest.raises(ModelError, match="request 'bad' cannot be prepared: ") as caught:
        engine.submit(VideoRequest("bad", BAD, 9))
    assert len(str(caught.value)) < MOST_CHARACTERS + 100 and str(caught.value).encode()
    engine.submit(VideoRequest("z", OTHERS["z"], 9, seed=2))
    outputs = list(engine.run())
    assert_all_pages_free(engine)
    assert_others_are_whole(outputs)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("value", "ValueError: no"),
        ("memory", "MemoryError"),
        ("surrogate", r"OSError: the file \udcff is gone"),
        ("speechless", "Speechless, whose message cannot be made"),
        ("no text", "NoText, whose message cannot be made"),
        ("megabyte", f"RuntimeError: {'x' * MOST_CHARACTERS}... (1048576 characters)"),
    ],
)
def test_what_is_said_of_an_error(fault, text):
    with pytest.raises(Exception) as caught:
        FAULTS[fault]()
    assert described(caught.value) == text
    shown = presentable(caught.value)
    assert (str(shown) == text and type(shown) is ModelError) if fault in UNFIT else shown is caught.value


def test_errors_that_lead_to_each_other_are_all_freed():
    """In a circle, too."""
    first, second = ValueError("first"), ValueError("second")
    try:
        try:
            raise first
        except ValueError:
            raise second from first
    except ValueError:
        first.__context__ = second
    presentable(second)
    assert first.__traceback__ is None and second.__traceback__ is None
