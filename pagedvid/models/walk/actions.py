"""Walks in words: `map 7: left 12, up 8, right 12, down 8` as one move of the view per frame.

A leg is one of nine actions and, if it is taken more than once, a number; legs are separated by commas, semicolons or
"then". `map` with a number in front says on which map the walk begins: its first frames are given. Without it the
model invents them too, unless the request brings frames to go on from (given.py).

A prompt on the way says what is done from there on. It need not name the map; another one is refused, because nobody
gets to another map by walking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pagedvid.errors import PromptError
from pagedvid.models.common.prefix import Prefix
from pagedvid.shown import shown

MOVES: Mapping[str, tuple[int, int]] = {
    "stay": (0, 0),
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "up-left": (-1, -1),
    "up-right": (-1, 1),
    "down-left": (1, -1),
    "down-right": (1, 1),
}
"""The nine actions: cells by which the view moves down and right."""
MAX_ACTIONS = 100_000
"""Of one walk; a larger number is taken for a mistake."""
MAX_MAP = 2**31 - 1
_FORM = "such as 'map 7: left 12, up 8, right 12, down 8'"
_MAP = re.compile(r"\s*map\s*(\d+)\s*(?::|,|;|$)", re.IGNORECASE)
_LEG = re.compile(r"([a-z]+(?:[ -][a-z]+)?)\s*(\d*)", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;]|\bthen\b", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class GivenFrames:
    """Frames before the first one of a video, in whole chunks."""

    prefix: Prefix
    actions: tuple[str, ...]
    """From each of them to the next, keys of `MOVES`."""

    @property
    def num_frames(self) -> int:
        """As many as were given."""
        return len(self.actions) + 1


@dataclass(frozen=True)
class Walk:
    """What a prompt says, and what it goes on from."""

    map_seed: int | None
    """The map that the first frames show; None: they are invented, or go on from given ones."""
    actions: tuple[str, ...]
    """One a frame, keys of `MOVES`; the view stays where it is when they are over."""
    given: GivenFrames | None = None
    """Frames before the first one; the first action leads on from the last of them."""

    def places(self, num_frames: int) -> np.ndarray:
        """World (row, column) of the first cell in view, int64 [frames, 2], for given frames and those after them; that
        of frame 0 is (0, 0), and action n leads from frame n to frame n + 1."""
        moves = np.zeros((num_frames, 2), dtype=np.int64)
        actions = self.actions if self.given is None else self.given.actions + self.actions
        taken = actions[: max(0, num_frames - 1)]
        moves[1 : 1 + len(taken)] = np.array([MOVES[action] for action in taken], dtype=np.int64).reshape(-1, 2)
        return moves.cumsum(axis=0)

    def followed_by(self, num_frames: int, walk: Walk) -> Walk:
        """This walk before frame `num_frames` (at least 1, given frames not counted), and from there on the actions of
        another walk.

        The view has stayed where it was if this one was over before. Raises PromptError for a map that is not its own.
        """
        if walk.map_seed not in (None, self.map_seed):
            here = "invented" if self.map_seed is None else f"map {self.map_seed}"
            raise PromptError(
                f"the walk is under way and its map is {here}, so that a prompt cannot name map {walk.map_seed}; leave "
                "the map out, or begin a new walk there"
            )
        num_before = num_frames - 1 if self.given is None else num_frames
        taken = self.actions[:num_before]
        stayed = ("stay",) * (num_before - len(taken))
        return replace(self, actions=taken + stayed + walk.actions)


def read_walk(prompt: str) -> Walk:
    """The walk that a prompt describes. Raises PromptError, which names the leg that is not understood."""
    named_map = _MAP.match(prompt)
    map_seed = None if named_map is None else _read_map(named_map.group(1), prompt)
    legs = [leg.strip() for leg in _SEPARATOR.split(prompt[named_map.end() if named_map else 0 :])]
    if legs[-1] == "":
        legs.pop()
    if not legs and map_seed is None:
        raise PromptError(f"the prompt {shown(prompt)} is empty; the walk model takes actions {_FORM}")
    actions: list[str] = []
    for leg in legs:
        action, count = _read_leg(leg, prompt)
        if len(actions) + count > MAX_ACTIONS:
            raise PromptError(f"the walk {shown(prompt)} has more than {MAX_ACTIONS} actions; ask for fewer")
        actions += [action] * count
    return Walk(map_seed, tuple(actions))


def _read_map(digits: str, prompt: str) -> int:
    if len(digits) > 10 or int(digits) > MAX_MAP:
        raise PromptError(f"the prompt {shown(prompt)} names map {shown(digits)}; maps are numbered 0 to {MAX_MAP}")
    return int(digits)


def _read_leg(leg: str, prompt: str) -> tuple[str, int]:
    """(action, how often). Raises PromptError."""
    match = _LEG.fullmatch(leg)
    action = None if match is None else _action("-".join(match.group(1).lower().replace("-", " ").split()))
    if match is None or action is None:
        raise PromptError(
            f"{shown(leg)} in the walk {shown(prompt)} is no action; actions are {', '.join(MOVES)}, each with a "
            f"number of frames if it is not 1, and commas between them, {_FORM}"
        )
    digits = match.group(2) or "1"
    if len(digits) > len(str(MAX_ACTIONS)) or not 1 <= int(digits) <= MAX_ACTIONS:
        raise PromptError(f"{shown(leg)} in the walk {shown(prompt)}: give a number of frames from 1 to {MAX_ACTIONS}")
    return action, int(digits)


def _action(words: str) -> str | None:
    """The action by its name, in either order of the words; None: there is none."""
    swapped = "-".join(reversed(words.split("-")))
    return next((name for name in (words, swapped) if name in MOVES), None)
