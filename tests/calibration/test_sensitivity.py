"""Sensitivities, on a model whose prediction is a known sum of its layers' outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pagedvid.calibration.profile import OutputChange
from pagedvid.calibration.sensitivity import SensedModel

LAYERS, HEADS, GROUP, TOKENS, HEAD_DIM = 3, 2, 2, 10, 4
FACTORS = (1.0, 0.1, 3.0)
RANGES = (slice(0, 4), slice(4, 10))


class SumModel:
    """Its prediction is the sum of all layers' outputs, each times a factor, side by side for all heads."""

    name = "sum"

    def forward(self, latents_TC: Tensor, ranges: Any, conditions: Any, attend: Any) -> Tensor:
        outputs = [attend(layer, latents_TC, latents_TC, latents_TC) for layer in range(LAYERS)]
        return sum(factor * out.flatten(1) for factor, out in zip(FACTORS, outputs, strict=True))


class Noting:
    """In place of a `ProfilingCache`."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.watched, self.found = True, {}
        self.changes = {
            ("keys", layer): [
                OutputChange(
                    SimpleNamespace(start=range_.start, stop=range_.stop),
                    torch.randn(GROUP, HEADS, range_.stop - range_.start, HEAD_DIM, generator=generator),
                )
                for range_ in RANGES
            ]
            for layer in (0, 2)
        }

    def take_changes(self) -> dict[tuple[str, int], list[OutputChange]]:
        return self.changes

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        self.watched = False
        yield
        self.watched = True

    def add_sensitivity(self, kind: str, layer: int, head: int, prediction_error: float, output_error: float) -> None:
        self.found[kind, layer, head] = prediction_error, output_error


def test_a_prediction_changes_by_the_factor_of_the_layer():
    cache = Noting()
    watched: list[bool] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        watched.append(cache.watched)
        return torch.full((TOKENS, HEADS * GROUP, HEAD_DIM), float(layer))

    model = SensedModel(SumModel(), cache)
    assert model.name == "sum"
    latents = torch.zeros(TOKENS, 1)
    exact = model.forward(latents, [], [], attend)
    assert torch.equal(exact, SumModel().forward(latents, [], [], attend))
    assert watched[: LAYERS * 5] == [True] * LAYERS + [False] * (4 * LAYERS)
    assert set(cache.found) == {("keys", layer, head) for layer in (0, 2) for head in range(HEADS)}
    for (kind, layer, head), (of_prediction, of_output) in cache.found.items():
        changes = [each.change_GHnD[:, head] for each in cache.changes[kind, layer]]
        total = sum(float(x.square().sum()) for x in changes)
        values = TOKENS * HEADS * GROUP * HEAD_DIM
        assert of_prediction == pytest.approx(FACTORS[layer] ** 2 * total / values, rel=1e-4)
        by_range = [float(x.square().sum()) / x.shape[1] for x in changes]
        assert of_output == pytest.approx(sum(by_range) / len(RANGES), rel=1e-4)


def test_most_forwards_are_run_once():
    cache = Noting()
    cache.changes = {}
    calls: list[int] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(layer)
        return torch.zeros(TOKENS, HEADS * GROUP, HEAD_DIM)

    SensedModel(SumModel(), cache).forward(torch.zeros(TOKENS, 1), [], [], attend)
    assert calls == list(range(LAYERS)) and cache.found == {}
