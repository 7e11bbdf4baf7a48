"""The rendered world: determinism, motions that do what they are called, colours and sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pagedvid.models.demo.world import (
    BACKGROUNDS,
    BOUNCE_FRAMES,
    BOUNCE_HEIGHT,
    COLORS,
    FRAME_SIZE,
    HALF_WIDTHS,
    KINDS,
    MOTIONS,
    ORBIT_RADIUS,
    SPEED,
    Scene,
    Thing,
    coverage,
    is_held_out,
    random_scene,
    render,
)

FRAMES = np.arange(48)


def thing(kind: str = "circle", size: str = "small", motion: str = "still", **changes: float) -> Thing:
    values = {"x": 16.0, "y": 16.0, "phase": 0.8} | changes
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


def test_circling_keeps_its_distance_from_home_and_goes_round() -> None:
    around = centroids(thing(motion="circling")) - FRAME_SIZE / 2
    assert np.allclose(np.hypot(*around.T), ORBIT_RADIUS, atol=0.1)
    angles = np.unwrap(np.arctan2(around[:, 1], around[:, 0]))
    assert np.all(np.diff(angles) > 0) and angles[-1] - angles[0] > 2 * np.pi


def test_bouncing_leaves_one_ground_straight_up_and_comes_back() -> None:
    x, y = thing(motion="bouncing", phase=0.0).centers(np.arange(0, 48, 0.25)).T
    assert np.all(x == 16)
    assert y.max() == pytest.approx(16 + BOUNCE_HEIGHT / 2) and y.min() == pytest.approx(16 - BOUNCE_HEIGHT / 2)
    ground = np.flatnonzero(np.isclose(y, y.max()))
    assert np.all(np.diff(ground) == BOUNCE_FRAMES / 0.25)


def test_a_phase_shifts_a_motion_in_time() -> None:
    late = thing(motion="bouncing", phase=0.3 + 5 * 2 * np.pi / BOUNCE_FRAMES).centers(FRAMES[:-5])
    assert np.allclose(late, thing(motion="bouncing", phase=0.3).centers(FRAMES[5:]))


def test_sizes_and_kinds_cover_different_areas() -> None:
    frame = np.zeros(1)
    areas = {(kind, size): coverage(thing(kind, size), frame).sum() for kind in KINDS for size in HALF_WIDTHS}
    for kind in KINDS:
        assert areas[kind, "large"] > 2 * areas[kind, "small"]
    assert areas["square", "large"] == pytest.approx(14 * 14, rel=0.02)
    assert areas["circle", "large"] == pytest.approx(np.pi * 49, rel=0.02)
    assert areas["triangle", "large"] == pytest.approx(98, rel=0.05)
    assert areas["cross", "large"] < areas["triangle", "large"] + 25


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
    assert np.allclose(image[10, 10] * 255, COLORS["red"], atol=1)
    assert np.allclose(image[0, 0] * 255, BACKGROUNDS["black"])


@pytest.mark.parametrize("held_out", [False, True])
def test_random_scenes_use_every_word_and_keep_to_their_side_of_the_split(held_out: bool) -> None:
    scenes = [random_scene(np.random.default_rng(seed), held_out=held_out) for seed in range(200)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.motion for thing in things} == set(MOTIONS)
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.color for thing in things} == set(COLORS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {len(scene.things) for scene in scenes} == {1, 2}
    assert all(is_held_out(thing, scene.background) == held_out for scene in scenes for thing in scene.things)


def test_about_one_combination_in_eight_is_held_out() -> None:
    combinations = itertools.product(KINDS, COLORS, HALF_WIDTHS, MOTIONS, BACKGROUNDS)
    held_out = [is_held_out(Thing(k, c, s, m, 16, 16), background) for k, c, s, m, background in combinations]
    assert 0.1 < np.mean(held_out) < 0.15


def test_two_things_of_a_scene_have_different_colors_and_homes_apart() -> None:
    for seed in range(50):
        first, second = random_scene(np.random.default_rng(seed), 2).things
        assert first.color != second.color
        assert min(second.x - first.x, second.y - first.y) >= 10


def test_a_margin_widens_the_outline() -> None:
    plain, wide = (coverage(thing("square", "small"), np.zeros(1), margin) for margin in (0.0, 1.5))
    assert wide.sum() == pytest.approx(12**2, rel=0.02) and plain.sum() == pytest.approx(9**2, rel=0.02)
