"""From recorded predictions to recorded velocities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.models.magi1.pipeline import velocity
from pagedvid.models.magi1.spec import SamplingConfig
from tests.models.magi1.recordings import CHUNK_FRAMES, ROLLOUTS, largest_difference

BRANCHES = ("cond", "null", "uncond")


def chunks(call: dict, recorded: Tensor, num_in_flight: int) -> list[Tensor]:
    """The call's prediction for each chunk in flight, without what runs in front of them."""
    parts = list(recorded) if recorded.ndim == 5 else list(recorded.split(CHUNK_FRAMES, dim=1))
    return parts[len(parts) - num_in_flight :]


def test_three_forwards_combine_as_recorded():
    rollout = ROLLOUTS["w4_cfg3"]
    for first in range(0, len(rollout.calls), 3):
        calls = rollout.calls[first : first + 3]
        used = rollout.data[f"call.{first + 2:03d}.velocity_used"].split(CHUNK_FRAMES, dim=1)
        predictions = [chunks(call, rollout.data[f"call.{call['call']:03d}.velocity"], len(used)) for call in calls]
        times = calls[0]["t"][-len(used) :]
        for number, (expected, time) in enumerate(zip(used, times, strict=True)):
            by_branch = {branch: made[number] for branch, made in zip(BRANCHES, predictions, strict=True)}
            assert largest_difference(velocity(by_branch, time, rollout.sampling), expected) <= 1e-5


def test_a_nearly_clean_chunk_is_mixed_with_itself_alone_as_recorded():
    rollout, num_mixed = ROLLOUTS["w4_distill"], 0
    for call in rollout.calls:
        name = f"call.{call['call']:03d}"
        if not call["nearly_clean"]:
            continue
        parts = list(rollout.data[f"{name}.velocity"].split(CHUNK_FRAMES, dim=1))
        *normal, alone = parts[1:] if call["t"][0] == 0.9999 else parts
        expected = rollout.data[f"{name}.velocity_used"].split(CHUNK_FRAMES, dim=1)
        mixed = velocity({"cond": normal[0], "alone": alone}, call["t"][-1], rollout.sampling)
        assert largest_difference(mixed, expected[0]) <= 1e-5
        for other, same in zip(normal[1:], expected[1:], strict=True):
            assert torch.equal(velocity({"cond": other}, 0.1, rollout.sampling), same)
        num_mixed += 1
    assert num_mixed == 18


@pytest.mark.parametrize(
    ("time", "history", "text"),
    [(0.0, 1.5, 7.5), (0.0217, 1.5, 7.5), (0.1, 1.5, 7.5), (0.29, 1.5, 7.5), (0.3, 1.0, 0.0), (0.9, 1.0, 0.0)],
)
def test_strengths_depend_on_the_time(time: float, history: float, text: float):
    unit = torch.eye(3)
    made = velocity(dict(zip(BRANCHES, unit, strict=True)), time, SamplingConfig())
    assert made.tolist() == pytest.approx([text, history - text, 1 - history])
