"""The reader names what rendered clips show, and does not name what is not there."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from lib.scene_reader import SceneReading, ThingReading, compare, compare_identity, read_scene
from pagedvid.models.demo.world import BACKGROUNDS, COLORS, FRAME_SIZE, Scene, Thing, random_scene
from tests.benchmarks.clips import disturbed, draw_clip

NUM_CLIPS = 200
BALL = Thing("circle", "red", "large", "right", 16.0, 16.0)
BOX = Thing("square", "yellow", "small", "up", 20.0, 24.0)


def share_right(num_things: int, first_frame: int, spoil: bool, num_clips: int) -> dict[str, float]:
    """Share of all attributes of random scenes, usual and held-out ones, that are read as drawn."""
    rng = np.random.default_rng([num_things, first_frame])
    right: dict[str, list[bool]] = defaultdict(list)
    for i in range(num_clips):
        scene = random_scene(rng, num_things, held_out=i % 2 == 0)
        clip = draw_clip(scene, first_frame)
        reading = read_scene(disturbed(clip, rng) if spoil else clip, num_things, first_frame)
        right["number of things"].append(reading.num_things == num_things)
        for name, values in compare(scene, reading).items():
            right[name] += values
    return {name: float(np.mean(values)) for name, values in right.items()}


@pytest.mark.parametrize("first_frame", [0, 200])
@pytest.mark.parametrize("num_things", [1, 2])
def test_rendered_clips_are_read_right(num_things: int, first_frame: int) -> None:
    shares = share_right(num_things, first_frame, spoil=False, num_clips=NUM_CLIPS)
    assert set(shares) == {"background", "color", "kind", "size", "motion", "number of things"}
    assert min(shares.values()) >= 0.99, shares


def test_noise_and_shifted_colors_do_little_harm() -> None:
    shares = share_right(2, 0, spoil=True, num_clips=100)
    assert min(shares.values()) >= 0.97, shares


def test_a_thing_behind_another_is_read_from_what_is_in_view() -> None:
    behind = Thing("cross", "yellow", "small", "right", 4.0, 16.0)
    scene = Scene((behind, Thing("square", "blue", "large", "still", 18.0, 16.0)), "gray")
    reading = read_scene(draw_clip(scene), 2)
    assert all(all(values) for values in compare(scene, reading).values())
    (cross,) = (thing for thing in reading.things if thing.color == "yellow")
    hidden_F = np.isnan(cross.centers_F2[:, 0])
    assert 3 <= hidden_F.sum() <= 12  # it is completely hidden for 5 frames
    known_F = np.flatnonzero(~hidden_F)
    away = np.abs(cross.centers_F2[known_F] - behind.centers(known_F.astype(float)) % FRAME_SIZE)
    assert away.max() < 1.5 and away.mean() < 0.3


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_clip_shows_nothing(background: str) -> None:
    scene = Scene((BALL, BOX), background)
    reading = read_scene(draw_clip(Scene((), background)), 2)
    assert reading.background == background and reading.things == (ThingReading(), ThingReading())
    right = compare(scene, reading)
    assert right.pop("background") == [True]
    assert not any(any(values) for values in right.values())  # not even "still"


def test_noise_and_dust_show_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = read_scene(rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), 1)
    assert (noise.background, noise.things, noise.num_things) == (None, (ThingReading(),), 0)
    image = np.where(rng.random((32, 32, 1)) < 0.15, COLORS["red"], BACKGROUNDS["navy"]).astype(np.uint8)
    dust = read_scene(np.stack([image] * 24), 1)
    assert (dust.background, dust.things, dust.num_things) == ("navy", (ThingReading(),), 0)


@pytest.mark.parametrize("shape", ["bar", "ring", "two pieces"])
def test_a_blob_has_a_color_but_no_kind_and_no_size(shape: str) -> None:
    y, x = np.mgrid[:32, :32] - 15.5
    radius = np.hypot(x, y)
    mask = {
        "bar": (abs(x) < 3) & (abs(y) < 13),
        "ring": (radius < 8) & (radius > 4),
        "two pieces": np.minimum(np.hypot(x - 7, y), np.hypot(x + 7, y)) < 4.5,
    }[shape]
    image = np.where(mask[..., None], COLORS["red"], BACKGROUNDS["navy"]).astype(np.uint8)
    (thing,) = read_scene(np.stack([image] * 24), 1).things
    assert (thing.color, thing.kind, thing.size) == ("red", None, None)


def test_a_thing_that_is_gone_for_most_of_the_clip_is_none() -> None:
    clip = draw_clip(Scene((BALL,), "teal"))
    clip[8:] = BACKGROUNDS["teal"]
    assert read_scene(clip, 1).things == (ThingReading(),)


def test_a_thing_that_jumps_about_has_no_motion() -> None:
    frames = draw_clip(Scene((BALL,), "black"), num_frames=200)
    shuffled = np.random.default_rng(0).permutation(frames)[:24]
    (thing,) = read_scene(shuffled, 1).things
    assert (thing.color, thing.kind, thing.size, thing.motion) == ("red", "circle", "large", None)


def test_things_too_few_and_too_many_are_counted() -> None:
    one, two = Scene((BOX,), "gray"), Scene((BOX, BALL), "gray")
    reading = read_scene(draw_clip(one), 2)
    assert reading.num_things == 1 and reading.things[1] == ThingReading()
    assert compare(two, reading)["color"] == [True, False]
    reading = read_scene(draw_clip(two), 1)
    assert reading.num_things == 2 and len(reading.things) == 1


def test_pairs_are_made_by_color_before_anything_else() -> None:
    # By the other attributes alone the things would be paired the other way round, with six right instead of two.
    things = (ThingReading("yellow", "circle", "large", "right"), ThingReading("red", "square", "small", "up"))
    right = compare(Scene((BALL, BOX), "gray"), SceneReading("gray", things, 2, np.arange(24.0)))
    assert right == {
        "background": [True],
        "color": [True, True],
        "kind": [False, False],
        "size": [False, False],
        "motion": [False, False],
    }
    # Without a color in common, the pairing with most attributes right counts.
    things = (ThingReading("blue", "square", "small", "up"), ThingReading("green", "circle", "large", "left"))
    right = compare(Scene((BALL, BOX), "gray"), SceneReading(None, things, 2, np.arange(24.0)))
    assert right == {
        "background": [False],
        "color": [False, False],
        "kind": [True, True],
        "size": [True, True],
        "motion": [False, True],
    }


@pytest.mark.parametrize("num_things", [1, 2])
def test_a_video_keeps_its_identity_and_its_path(num_things: int) -> None:
    rng = np.random.default_rng(num_things)
    same, restarted, other = [], [], []
    for _ in range(60):
        scene = random_scene(rng, num_things)
        before = read_scene(draw_clip(scene, 0, 8), num_things)
        same.append(compare_identity(before, read_scene(draw_clip(scene, 8), num_things, 8)))
        restarted.append(compare_identity(before, read_scene(draw_clip(scene, 0), num_things, 8)))
        stranger = random_scene(rng, num_things)
        other.append(compare_identity(before, read_scene(draw_clip(stranger, 8), num_things, 8)))

    def share(rows: list[dict[str, list[bool]]], name: str) -> float:
        return float(np.mean([value for row in rows for value in row[name]]))

    names = ("background", "color", "kind", "size", "motion", "path")
    assert min(share(same, name) for name in names) >= 0.99
    assert share(restarted, "color") >= 0.99 and share(restarted, "path") <= 0.35  # the 1 of 7 that is still continues
    assert all(share(other, name) < 0.7 for name in names) and share(other, "path") <= 0.25


def test_what_was_never_seen_cannot_be_kept() -> None:
    empty = read_scene(draw_clip(Scene((), "gray")), 1)
    right = compare_identity(empty, empty)
    assert right == {"background": [True], **{name: [False] for name in ("size", "color", "kind", "motion", "path")}}


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float64 \[2, 32, 32, 3\]"):
        read_scene(np.zeros((2, 32, 32, 3)), 1)
    with pytest.raises(ValueError, match=r"uint8 \[2, 3, 32, 32\]"):
        read_scene(np.zeros((2, 3, 32, 32), dtype=np.uint8), 1)
