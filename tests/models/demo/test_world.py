"""The rendered world: determinism, motions that do what they are called, colours and sizes."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.models.demo.world import (
    BACKGROUNDS,
    COLORS,
    FRAME_SIZE,
    HALF_WIDTHS,
    KINDS,
    MOTIONS,
    SPEED,
    Scene,
    Thing,
    coverage,
    random_scene,
    render,
)

FRAMES = np.arange(48)


def thing(kind: str = "circle", size: str = "small", motion: str = "still", **changes: float) -> Thing:
    values = {"x": 16.0, "y": 16.0, "heading": 0.8} | changes
    return Thing(kind=kind, color="red", size=size, motion=motion, **values)


def centroids(a: Thing) -> np.ndarray:
    """Centre of mass of the painted pixels per frame, [F, 2] as (x, y), on the torus that the frame is."""
    cover = coverage(a, FRAMES)
    circle = np.exp(2j * np.pi * (np.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE)
    mean_x, mean_y = cover.sum(axis=1) @ circle, cover.sum(axis=2) @ circle
    return np.mod(np.stack([np.angle(mean_x), np.angle(mean_y)], 1) / (2 * np.pi), 1) * FRAME_SIZE


def test_a_seed_decides_every_pixel() -> None:
    one, two = (render(random_scene(np.random.default_rng(7)), FRAMES) for _ in range(2))
    other = render(random_scene(np.random.default_rng(8)), FRAMES)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.shape == (48, FRAME_SIZE, FRAME_SIZE, 3) and one.dtype == np.float32
    assert one.min() >= 0 and one.max() <= 1


def test_a_frame_does_not_depend_on_the_frames_drawn_with_it() -> None:
    scene = random_scene(np.random.default_rng(3))
    assert np.array_equal(render(scene, FRAMES)[40:], render(scene, FRAMES[40:]))


@pytest.mark.parametrize(
    ("motion", "step"),
    [("left", (-SPEED, 0)), ("right", (SPEED, 0)), ("up", (0, -SPEED)), ("down", (0, SPEED)), ("still", (0, 0))],
)
def test_straight_motions_move_the_centroid_and_wrap(motion: str, step: tuple[float, float]) -> None:
    moved = np.diff(centroids(thing(motion=motion)), axis=0)
    half = FRAME_SIZE / 2
    assert np.allclose(np.mod(moved - step + half, FRAME_SIZE) - half, 0, atol=0.06)


def test_circling_keeps_its_distance_from_the_middle_and_goes_round() -> None:
    around = centroids(thing(motion="circling")) - FRAME_SIZE / 2
    assert np.allclose(np.hypot(*around.T), 7.5, atol=0.1)
    angles = np.unwrap(np.arctan2(around[:, 1], around[:, 0]))
    assert np.all(np.diff(angles) > 0) and angles[-1] - angles[0] > 2 * np.pi


@pytest.mark.parametrize("size", list(HALF_WIDTHS))
def test_bouncing_stays_inside_and_turns_round(size: str) -> None:
    centers = thing(size=size, motion="bouncing").centers(FRAMES)
    margin = HALF_WIDTHS[size]
    assert centers.min() >= margin and centers.max() <= FRAME_SIZE - margin
    assert np.any(np.diff(centers[:, 0]) > 0) and np.any(np.diff(centers[:, 0]) < 0)
    assert np.all(np.hypot(*np.diff(centers, axis=0).T) <= SPEED + 1e-9)


def test_sizes_and_kinds_cover_different_areas() -> None:
    frame = np.zeros(1)
    areas = {(kind, size): coverage(thing(kind, size), frame).sum() for kind in KINDS for size in HALF_WIDTHS}
    for kind in KINDS:
        assert areas[kind, "large"] > 1.8 * areas[kind, "small"]
    assert areas["square", "large"] == pytest.approx(16 * 16, rel=0.02)
    assert areas["circle", "large"] == pytest.approx(np.pi * 64, rel=0.02)
    assert areas["triangle", "large"] == pytest.approx(128, rel=0.05)
    assert areas["cross", "large"] < areas["triangle", "large"] + 32


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'hexagon'.*circle"):
        coverage(thing("hexagon"), FRAMES)


def test_colors_are_far_apart_from_each_other_and_from_every_background() -> None:
    colors, grounds = np.array(list(COLORS.values()), float), np.array(list(BACKGROUNDS.values()), float)
    between = np.linalg.norm(colors[:, None] - np.concatenate([colors, grounds]), axis=-1)
    assert between[between > 0].min() > 75
    grounds_between = np.linalg.norm(grounds[:, None] - grounds, axis=-1)
    assert grounds_between[grounds_between > 0].min() > 50


def test_things_are_painted_in_order() -> None:
    back, front = thing("square", "large"), thing("circle", "small")
    scene = Scene((back, Thing(**(vars(front) | {"color": "white"}))), "black")
    image = render(scene, np.zeros(1))[0]
    assert np.allclose(image[16, 16] * 255, COLORS["white"])
    assert np.allclose(image[9, 9] * 255, COLORS["red"], atol=1)
    assert np.allclose(image[0, 0] * 255, BACKGROUNDS["black"])


def test_random_scenes_use_every_word() -> None:
    scenes = [random_scene(np.random.default_rng(seed)) for seed in range(200)]
    assert {s.things[0].motion for s in scenes} == set(MOTIONS)
    assert {s.things[0].kind for s in scenes} == set(KINDS)
    assert {s.things[0].color for s in scenes} == set(COLORS)
    assert {s.background for s in scenes} == set(BACKGROUNDS)
