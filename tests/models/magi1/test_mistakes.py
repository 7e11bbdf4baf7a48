"""Mistakes that are easy to make, made on purpose: each moves the final latents as far as it was measured to.

The recordings pass at 1e-6, so anything here shows a hundred times over. Measured on the rollout with one chunk in
flight, whose chunks read up to four stored ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pagedvid.cache import manager
from pagedvid.cache.plan import StepPlan, resolve_ranges
from pagedvid.engine.protocol import Attend
from pagedvid.engine.schedule import Range, Round, Schedule, planned, with_endings
from pagedvid.models.magi1 import layers, network, pipeline
from pagedvid.models.magi1.conditioning import MagiCondition
from pagedvid.models.magi1.network import magi_rotary
from pagedvid.models.magi1.weights import load_magi
from tests.models.magi1.recordings import (
    CHUNK_FRAMES,
    DATA,
    ROLLOUTS,
    TOLERANCE,
    RecordedModel,
    final_of,
    largest_difference,
)

W1 = ROLLOUTS["w1"]
Mistake = Callable[[pytest.MonkeyPatch], RecordedModel]


def build(**sampling) -> RecordedModel:
    """The recorded model with some settings of the sampler changed."""
    config = replace(W1.config, sampling=replace(W1.sampling, **sampling))
    made = RecordedModel(config, load_magi(config, DATA / "weights_a.safetensors").network)
    made.noise_CFHW = W1.data["x0"]
    return made


def rescheduled(change: Callable[[Round], Round]) -> RecordedModel:
    """The recorded model with every round changed."""
    made = build()
    original = made.schedule

    def schedule(*arguments) -> Schedule:
        plan = original(*arguments)
        rounds = with_endings(lambda: map(change, plan.rounds()), CHUNK_FRAMES, plan.window)
        return planned(rounds, plan.window)

    made.schedule = schedule
    return made


def clean_time_is_one(_: pytest.MonkeyPatch) -> RecordedModel:
    return build(clean_t=1.0)


def longer_look_back(_: pytest.MonkeyPatch) -> RecordedModel:
    return build(noise2clean_kvrange=(6, 5, 4, 3), clean_chunk_kvrange=2)


def shorter_look_back(_: pytest.MonkeyPatch) -> RecordedModel:
    return build(noise2clean_kvrange=(4, 3, 2, 1))


def look_back_over_everything(_: pytest.MonkeyPatch) -> RecordedModel:
    return build(noise2clean_kvrange=(99,) * 4, clean_chunk_kvrange=99)


def no_history(_: pytest.MonkeyPatch) -> RecordedModel:
    """Only what is in the call itself."""
    return rescheduled(
        lambda round_: replace(round_, ranges=tuple(replace(part, visible=()) for part in round_.ranges))
    )


def no_clean_pass(_: pytest.MonkeyPatch) -> RecordedModel:
    """The last, noisy step is stored instead."""

    def change(round_: Round) -> Round:
        ranges = [part for part in round_.ranges if part.role != "clean"]
        num_less = len(round_.ranges) - len(ranges)
        last = ranges[0].frames[0] == (6 - 1) * CHUNK_FRAMES

        def own(part: Range) -> Range:
            stored = part.visible if not num_less else (*part.visible, *(chunk_before(part) if part.sees else ()))
            commits = bool(round_.finished) and not last
            return replace(part, visible=stored, sees=(), commits=commits, position=None if commits else part.position)

        steps = tuple(replace(step, ranges=(0,)) for step in round_.advances)
        return replace(round_, ranges=tuple(own(part) for part in ranges), advances=steps)

    return rescheduled(change)


def chunk_before(part: Range) -> tuple[int]:
    return (part.frames[0] // CHUNK_FRAMES - 1,)


def own_caption_in_the_clean_pass(patch: pytest.MonkeyPatch) -> RecordedModel:
    patch.setattr(pipeline, "OWN_PROMPT", {"cond", "alone", "clean"})
    return build()


def other_null_row(patch: pytest.MonkeyPatch) -> RecordedModel:
    patch.setattr(pipeline, "CONDITIONAL", set())
    return build()


def default_bands(_: pytest.MonkeyPatch) -> RecordedModel:
    made = build()
    num_bands = len(made.network.rope.bands)
    bands = 10000.0 ** (-torch.arange(num_bands) / num_bands)
    made.rope = magi_rotary(bands, made.config.frames.rows, made.config.frames.columns)
    return made


def rows_and_columns_exchanged(_: pytest.MonkeyPatch) -> RecordedModel:
    made = build()
    original, third = made.rope.tables, len(made.network.rope.bands)

    def tables(first_token: int, num_tokens: int) -> tuple[Tensor, ...]:
        return tuple(
            torch.cat([t[:, :third], t[:, 2 * third : 3 * third], t[:, third : 2 * third], t[:, 3 * third :]], dim=1)
            for t in original(first_token, num_tokens)
        )

    made.rope.tables = tables
    return made


def frames_counted_from_every_call(patch: pytest.MonkeyPatch) -> RecordedModel:
    """What is stored has been at the front of its call, at frame 0."""

    def resolve(*arguments) -> StepPlan:
        plan = resolve_ranges(*arguments)
        first = min(part.first_token for part in plan.ranges)
        return StepPlan(
            tuple(
                replace(
                    part,
                    first_token=part.first_token - first,
                    reads=tuple(replace(read, first_token=0) for read in part.reads),
                )
                for part in plan.ranges
            )
        )

    patch.setattr(manager, "resolve_ranges", resolve)
    return build()


def caption_keys_before_values(patch: pytest.MonkeyPatch) -> RecordedModel:
    """All keys, then all values, instead of head by head."""
    original = layers.CrossAttention.forward

    def forward(self, q: Tensor, kv: Sequence[Tensor], *rest) -> Tensor:
        width = 2 * self._head_dim
        mixed = [
            torch.cat([half.unflatten(1, (-1, width // 2)) for half in rows.chunk(2, dim=1)], dim=2).flatten(1)
            for rows in kv
        ]
        return original(self, q, mixed, *rest)

    patch.setattr(layers.CrossAttention, "forward", forward)
    return build()


def heads_taken_in_turn(patch: pytest.MonkeyPatch) -> RecordedModel:
    """Query head a with KV head a mod 2 instead of a div 2, in self- and cross-attention."""
    turned = torch.tensor([0, 2, 1, 3])
    original = layers.CrossAttention.forward

    def forward(self, q: Tensor, *rest) -> Tensor:
        return original(self, q[:, turned], *rest).unflatten(1, (4, -1))[:, turned].flatten(1)

    patch.setattr(layers.CrossAttention, "forward", forward)
    made = build()
    whole = made.forward

    def turning(
        latents: Tensor, ranges: Sequence[Range], conditions: Sequence[MagiCondition], attend: Attend
    ) -> Tensor:
        return whole(latents, ranges, conditions, lambda layer, q, k, v: attend(layer, q[:, turned], k, v)[:, turned])

    made.forward = turning
    return made


def no_interleave(patch: pytest.MonkeyPatch) -> RecordedModel:
    patch.setattr(network, "interleaved", lambda own, caption: torch.cat([own, caption], dim=1))
    return build()


def gains_without_one(patch: pytest.MonkeyPatch) -> RecordedModel:
    patch.setattr(
        layers.LayerNorm1p,
        "forward",
        lambda self, x: torch.nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps),
    )
    return build()


MISTAKES: dict[Mistake, float] = {
    clean_time_is_one: 0.011,
    frames_counted_from_every_call: 0.55,
    default_bands: 0.38,
    own_caption_in_the_clean_pass: 0.48,
    longer_look_back: 0.63,
    no_history: 1.7,
    look_back_over_everything: 1.1,
    no_clean_pass: 1.6,
    shorter_look_back: 1.1,
    rows_and_columns_exchanged: 1.2,
    caption_keys_before_values: 2.4,
    heads_taken_in_turn: 3.5,
    no_interleave: 3.6,
    gains_without_one: 3.4,
    other_null_row: 5.6,
}
"""Largest change of the final latents, measured with a dense implementation."""


@pytest.mark.parametrize(("mistake", "measured"), MISTAKES.items(), ids=lambda item: getattr(item, "__name__", ""))
def test_a_mistake_shows(mistake: Mistake, measured: float, monkeypatch: pytest.MonkeyPatch):
    difference = largest_difference(final_of(W1, model=mistake(monkeypatch)), W1.data["final"])
    assert difference > 100 * TOLERANCE
    assert difference == pytest.approx(measured, rel=0.1)


def test_without_a_mistake_the_same_model_passes():
    assert largest_difference(final_of(W1, model=build()), W1.data["final"]) <= TOLERANCE
    assert largest_difference(final_of(W1, model=rescheduled(lambda round_: round_)), W1.data["final"]) <= TOLERANCE
