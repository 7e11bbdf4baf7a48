"""Every mistake that is easy to make here changes the recorded calls by far more than the tolerance.

Each is made on purpose, in an otherwise untouched run through engine and cache; the run is stopped at the first call
that shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pagedvid.attention.projected_step import ProjectedStep, mapped
from pagedvid.cache.window import Window
from pagedvid.models.worldplay import schedule as schedule_module
from pagedvid.models.worldplay.pipeline import WorldPlayModel
from tests.models.worldplay.dense import rotate_neighbours
from tests.models.worldplay.recordings import TOLERANCE, VARIANTS, call_names, calls, inputs, max_error, tokens_of
from tests.models.worldplay.rollout import make_engine, make_model, request, watched

SHOWN = 100 * TOLERANCE
select_frames = schedule_module.select_frames


def first_call_that_differs(model: WorldPlayModel, variant: str, asked=None) -> str | None:
    """Name of the first denoise call that is off by more than SHOWN; None: all of them agree."""
    engine, names = make_engine(model), call_names()
    engine.submit(asked or request(variant))
    with watched(model) as seen:
        while engine.has_work:
            engine.step()
            name = names[len(seen.outputs) - 1]
            if name.endswith("mem"):
                continue
            expected = tokens_of(variant, calls(variant)[f"{name}.output"][0])
            if max_error(seen.outputs[-1], expected) > SHOWN:
                return name
    return None


def with_rounds(model: WorldPlayModel, change: Callable) -> None:
    """Lets `change` rewrite every range of the model's schedule."""
    original = model.schedule

    def schedule(*arguments):
        plan = original(*arguments)
        rounds = [replace(r, ranges=tuple(change(part) for part in r.ranges)) for r in plan.rounds()]
        return replace(plan, rounds=lambda: iter(rounds))

    model.schedule = schedule


def with_attend(model: WorldPlayModel, change: Callable) -> None:
    """Lets `change(attend, ranges)` give the model another `attend`."""
    original = model.forward
    model.forward = lambda latents, ranges, conditions, attend: original(
        latents, ranges, conditions, change(attend, ranges)
    )


# ---------------------------------------------------------------------- schedule and memory


def memory_pass_at_zero(model, monkeypatch):
    monkeypatch.setattr(schedule_module, "MEMORY_TIMESTEP", 0.0)


def slots_are_frame_numbers(model, monkeypatch):
    with_rounds(model, lambda part: part if part.commits else replace(part, position=part.frames[0]))


def positions_are_not_reindexed(model, monkeypatch):
    monkeypatch.setattr(schedule_module, "WINDOW", Window(0, 1, positions="absolute"))


def newest_frames_only(model, monkeypatch):
    def newest(policy, first_frame, views, points):
        return tuple(range(max(0, first_frame - policy.memory_frames), first_frame))

    monkeypatch.setattr(schedule_module, "select_frames", newest)


def chunk_7_reads_the_memory_of_chunk_6(model, monkeypatch):
    monkeypatch.setattr(
        schedule_module, "select_frames", lambda policy, first, *views: select_frames(policy, min(first, 24), *views)
    )


def memory_with_the_cameras_of_the_newest_frames(model, monkeypatch):
    cameras = request("hy8b").inputs["trajectory"].cameras

    def change(part):
        return replace(part, tag=cameras.select(tuple(range(len(part.frames))))) if part.commits else part

    with_rounds(model, change)


# ---------------------------------------------------------------------- conditions


def no_action(model, monkeypatch):
    network = model.network
    embedder = network.action_in if hasattr(network, "action_in") else network.condition_embedder.action_embedder
    monkeypatch.setattr(embedder, "forward", lambda actions: torch.zeros(len(actions), 128))


def no_text_in_the_memory_pass(model, monkeypatch):
    def change(attend, ranges):
        if not ranges[0].commits:
            return attend
        return lambda *qkv, **how: attend(*qkv, **{**how, "context": ()})

    with_attend(model, change)


def no_text_in_the_projective_copy(model, monkeypatch):
    def change(attend, ranges):
        def both(*qkv, **how):
            seen = attend(*qkv, **how)
            return seen if ranges[0].commits else torch.stack([seen[0], attend(*qkv, **{**how, "context": ()})[1]])

        return both

    with_attend(model, change)


def text_padding_is_cut_off(model, monkeypatch):
    original = model.encode_text
    model.encode_text = lambda x: original({"prompt_embeds": x["prompt_embeds"][:, :5]})


# ---------------------------------------------------------------------- projection


def after(monkeypatch, name: str, change: Callable) -> None:
    """Calls `change` with the same arguments after a method of the view."""
    method = getattr(ProjectedStep, name)

    def both(self, *given):
        method(self, *given)
        change(self, *given)

    monkeypatch.setattr(ProjectedStep, name, both)


def values_are_not_mapped(model, monkeypatch):
    def current(view, batch, q, k, v, q_out, keys, values):
        values.copy_(torch.cat([run.of_packed(v) for run in batch.current], dim=1))

    def history(view, batch, piece, keys, values):
        for decoding in piece.values:
            records, pages = view.tools.planner.pool.records, decoding.pages_ShP
            decoding.kernels.decode_heads(records, pages, piece.num_tokens, values, decoding.heads)

    after(monkeypatch, "arrange", current)
    after(monkeypatch, "read", history)


def output_is_not_mapped_back(model, monkeypatch):
    monkeypatch.setattr(ProjectedStep, "result", lambda view, batch, out: out)


def query_by_p_instead_of_its_transpose(model, monkeypatch):
    def change(view, batch, q, k, v, q_out, keys, values):
        q_out.copy_(mapped(batch.queries.of_packed(q), view._queries(batch)))

    after(monkeypatch, "arrange", change)


def query_is_not_pulled_back(model, monkeypatch):
    def change(view, batch, q, k, v, q_out, keys, values):
        q_out.copy_(batch.queries.of_packed(q))

    after(monkeypatch, "arrange", change)


def projection_of_rotated_queries_and_keys(model, monkeypatch):
    def change(attend, ranges):
        def both(layer, q, k, v, **how):
            seen = attend(layer, q, k, v, **how)
            if ranges[0].commits:
                return seen
            tables = model.rope.tables(0, len(q))
            turned = attend(layer, rotate_neighbours(q, *tables), rotate_neighbours(k, *tables), v, **how)
            return torch.stack([seen[0], turned[1]])

        return both

    with_attend(model, change)


FOR_BOTH = [
    memory_pass_at_zero,
    slots_are_frame_numbers,
    newest_frames_only,
    chunk_7_reads_the_memory_of_chunk_6,
    memory_with_the_cameras_of_the_newest_frames,
    no_action,
    values_are_not_mapped,
    output_is_not_mapped_back,
    query_by_p_instead_of_its_transpose,
    query_is_not_pulled_back,
    projection_of_rotated_queries_and_keys,
]
FOR_ONE = [
    # Memory and chunk are shifted alike, so that only a text without positions can tell.
    ("hy8b", positions_are_not_reindexed),
    ("hy8b", no_text_in_the_memory_pass),
    ("hy8b", no_text_in_the_projective_copy),
    ("wan5b", text_padding_is_cut_off),
]
MISTAKES = [*((variant, mistake) for mistake in FOR_BOTH for variant in VARIANTS), *FOR_ONE]


@pytest.mark.parametrize(("variant", "mistake"), MISTAKES, ids=lambda x: getattr(x, "__name__", x))
def test_the_mistake_shows(variant, mistake, monkeypatch):
    model = make_model(variant)
    mistake(model, monkeypatch)
    assert first_call_that_differs(model, variant) is not None


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_mistake_nothing_shows(variant):
    assert first_call_that_differs(make_model(variant), variant) is None
    assert inputs(variant)["prompt_embeds"].shape[1] > 5  # there is padding to cut off
