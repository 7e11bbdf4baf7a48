"""Walks in words: every form that is understood, and errors that name the leg."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.errors import PromptError
from pagedvid.models.walk.actions import MAX_ACTIONS, MOVES, Walk, read_walk


@pytest.mark.parametrize(
    ("prompt", "map_seed", "actions"),
    [
        ("left 12, up 8", None, ["left"] * 12 + ["up"] * 8),
        ("map 7: left 2, stay 1", 7, ["left", "left", "stay"]),
        ("Map 0, RIGHT", 0, ["right"]),
        ("map 3", 3, []),
        ("left; left then up-left 2,", None, ["left", "left", "up-left", "up-left"]),
        ("down right 1, right-down 1", None, ["down-right", "down-right"]),
        ("up2", None, ["up", "up"]),
    ],
)
def test_walks_are_read(prompt: str, map_seed: int | None, actions: list[str]):
    assert read_walk(prompt) == Walk(map_seed, tuple(actions))


@pytest.mark.parametrize("action", MOVES)
def test_each_action_is_a_leg(action: str):
    assert read_walk(f"{action} 3").actions == (action,) * 3


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a red circle", r"'a red circle' .* is no action; actions are stay, left"),
        ("left 3, north 2", r"'north 2' in the walk .* is no action"),
        ("left 3,, up 2", r"'' in the walk .* is no action"),
        ("left -3", r"'left -3' in the walk .* is no action"),
        ("left right 3", r"'left right 3' .* is no action"),
        ("left 0", "number of frames from 1 to 100000"),
        ("left 99999999999", "number of frames from 1 to 100000"),
        ("left 100000, up", "more than 100000 actions"),
        ("map 99999999999: left", "maps are numbered 0 to"),
        ("map seven: left", "'map seven: left' in the walk"),
    ],
)
def test_what_is_not_understood_is_named(prompt: str, message: str):
    with pytest.raises(PromptError, match=message):
        read_walk(prompt)


def test_an_action_leads_to_the_next_frame_and_the_view_rests_at_the_end():
    walk = read_walk("right 2, down, up-left")
    assert walk.places(7).tolist() == [[0, 0], [0, 1], [0, 2], [1, 2], [0, 1], [0, 1], [0, 1]]
    assert walk.places(2).tolist() == [[0, 0], [0, 1]]
    assert walk.places(1).tolist() == [[0, 0]]


def test_a_walk_and_its_reverse_end_where_they_began():
    rng = np.random.default_rng(0)
    opposite = {action: next(o for o in MOVES if MOVES[o] == (-r, -c)) for action, (r, c) in MOVES.items()}
    actions = [list(MOVES)[i] for i in rng.integers(9, size=50)]
    there_and_back = Walk(None, (*actions, *(opposite[action] for action in reversed(actions))))
    assert there_and_back.places(101)[-1].tolist() == [0, 0]
    assert len(Walk(None, ("left",) * MAX_ACTIONS).places(4)) == 4


@pytest.mark.parametrize(
    ("walk", "frame", "then", "whole"),
    [
        ("left 4", 3, "up 2", "left 2, up 2"),
        ("left 2, down 5", 6, "up", "left 2, down 3, up"),
        ("map 3: left", 4, "up", "map 3: left, stay 2, up"),
        ("map 3: left 9", 2, "map 3: up", "map 3: left, up"),
        ("map 3: left 9", 2, "map 3", "map 3: left"),
        ("left 9", 1, "up", "up"),
    ],
)
def test_a_walk_turns_with_the_action_into_a_frame(walk: str, frame: int, then: str, whole: str):
    assert read_walk(walk).followed_by(frame, read_walk(then)) == read_walk(whole)


@pytest.mark.parametrize("walk", ["map 3: left", "left"])
def test_nobody_walks_to_another_map(walk: str):
    with pytest.raises(PromptError, match=r"its map is (map 3|invented), so that a prompt cannot name map 4"):
        read_walk(walk).followed_by(4, read_walk("map 4: up"))
