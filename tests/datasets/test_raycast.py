"""Ray intersections against numbers worked out by hand, and against the solids' own equations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.datasets.raycast import Camera, Solids, blocked, cast
from gatesearch.datasets.scene_layout import random_scene

LEVEL = np.eye(3, dtype=np.float32)


def solids(*, boxes=(), balls=()):
    """A room 6 wide, 3 high, from 1 behind to 5 ahead; boxes (centre, half, yaw), balls (c, r)."""
    return Solids(
        room=np.array([(-3, -3, -1), (3, 0, 5)], np.float32),
        centres=np.array([box[0] for box in boxes], np.float32).reshape(-1, 3),
        halves=np.array([box[1] for box in boxes], np.float32).reshape(-1, 3),
        yaws=np.array([box[2] for box in boxes], np.float32),
        balls=np.array([ball[0] for ball in balls], np.float32).reshape(-1, 3),
        radii=np.array([ball[1] for ball in balls], np.float32),
    )


def look(world, *, size=(1, 1), fov=90.0, rotation=LEVEL):
    camera = Camera(
        position=np.array((0, -1.5, 0), np.float32), rotation=rotation, fov=np.deg2rad(fov)
    )
    return camera, cast(world, camera.position, camera.rays(size))


def test_a_wall_straight_ahead_has_one_depth():
    # At 5 m, 15 degrees up and down reach 1.34 m (of 1.5), and 9/7 of it to the sides (of 3).
    _, hits = look(solids(), size=(7, 9), fov=30)
    assert hits.t == pytest.approx(5.0)
    assert (hits.solid == 0).all()
    assert (hits.face == 5).all()  # axis z, greater side
    np.testing.assert_array_equal(hits.normals.T, np.broadcast_to((0, 0, -1), (63, 3)))


def test_floor_and_ceiling_seen_from_eye_height():
    # 2 x 2 pixels over 90 degrees: focal length 1 pixel, centres at +-1/2, so a ray falls 1/2 m a
    # metre and meets the floor, 1.5 m below, at a depth of 3 m; the ceiling likewise.
    _, hits = look(solids(), size=(2, 2), fov=90)
    assert hits.t == pytest.approx(3.0)
    np.testing.assert_array_equal(hits.normals[1], (1, 1, -1, -1))
    np.testing.assert_array_equal(hits.face, (2, 2, 3, 3))
    np.testing.assert_allclose(hits.points[:, 3], (1.5, 0, 3), atol=1e-6)


def test_floor_normal_in_a_camera_that_looks_down():
    # Looking down by p turns the floor's normal (0, -1, 0) into (0, -cos p, -sin p).
    cos, sin = np.cos(np.deg2rad(60)), np.sin(np.deg2rad(60))
    rotation = np.array([(1, 0, 0), (0, cos, sin), (0, -sin, cos)], np.float32)
    camera, hits = look(solids(), rotation=rotation)
    np.testing.assert_allclose(camera.rotation.T @ hits.normals[:, 0], (0, -cos, -sin), atol=1e-6)
    # The axis itself is 1.5 m above the floor along a line that falls by sin 60.
    assert hits.t[0] == pytest.approx(1.5 / sin, rel=1e-6)


def test_the_corner_of_a_turned_box():
    # A cube of edge 2 turned by 45 degrees shows its edge, sqrt 2 before its centre.
    _, hits = look(solids(boxes=[((0.001, -1, 3), (1, 1, 1), np.pi / 4)]))
    assert hits.solid[0] == 1
    assert hits.t[0] == pytest.approx(3 - np.sqrt(2), abs=2e-3)
    assert abs(hits.normals[0, 0]) == pytest.approx(np.sqrt(0.5), rel=1e-5)
    assert hits.normals[2, 0] == pytest.approx(-np.sqrt(0.5), rel=1e-5)


def test_the_front_of_a_straight_box_hides_what_is_behind():
    world = solids(boxes=[((0, -1, 4), (1, 1, 0.5), 0), ((0, -1, 2), (1, 1, 0.25), 0)])
    _, hits = look(world)
    assert hits.solid[0] == 2
    assert hits.t[0] == pytest.approx(1.75)
    np.testing.assert_allclose(hits.points[:, 0], (0, -0.5, -0.25), atol=1e-6)  # its own frame
    np.testing.assert_array_equal(hits.normals[:, 0], (0, 0, -1))


def test_a_ball_ahead():
    # 3 x 3 pixels over 90 degrees: the outer rays pass the centre at 4 sin(33.7) = 2.2 > 1.
    _, hits = look(solids(balls=[((0, -1.5, 4), 1)]), size=(3, 3), fov=90)
    np.testing.assert_array_equal(hits.solid.reshape(3, 3), [(0, 0, 0), (0, 1, 0), (0, 0, 0)])
    assert hits.t[4] == pytest.approx(3.0)
    np.testing.assert_allclose(hits.normals[:, 4], (0, 0, -1), atol=1e-6)


def test_depth_is_along_the_axis_not_along_the_ray():
    _, hits = look(solids(), size=(1, 3), fov=20)
    assert hits.t == pytest.approx(5.0)  # the outer rays are longer, their depth is the same


def test_shadow_of_a_table():
    lamp = np.array((0, -2.8, 2), np.float32)
    world = solids(boxes=[((0, -1, 2), (0.5, 0.1, 0.5), 0)], balls=[((2, -0.5, 4), 0.5)])
    # The lamp is 1.9 m above the slab's lower side at 0.9 m: its shadow reaches
    # 0.5 * 2.8 / 1.9 = 0.737 m by the lower and 0.5 * 2.8 / 1.7 = 0.824 m by the upper side.
    floor = np.array([(0, 0, 2), (0.80, 0, 2), (0.85, 0, 2), (0, -1.1, 2), (2.3, 0, 4.3)])
    beams = floor.T.astype(np.float32) - lamp[:, None]
    assert blocked(world, lamp, beams).tolist() == [True, True, False, False, True]


def distances(world, points):
    """How far points (N, 3) lie outside each box and ball (< 0 inside), (solids, N), in float64."""
    rows = []
    for centre, half, yaw in zip(world.centres, world.halves, world.yaws, strict=True):
        own = points - centre
        turned = np.stack(
            [
                np.cos(yaw) * own[:, 0] + np.sin(yaw) * own[:, 2],
                own[:, 1],
                -np.sin(yaw) * own[:, 0] + np.cos(yaw) * own[:, 2],
            ],
            axis=1,
        )
        rows.append((np.abs(turned) - half).max(1))
    for centre, radius in zip(world.balls, world.radii, strict=True):
        rows.append(np.sqrt(((points - centre) ** 2).sum(1)) - radius)
    return np.array(rows)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_hit_lies_on_its_solid_and_nothing_lies_before_it(seed):
    scene = random_scene(np.random.default_rng(seed))
    room = scene.solids.room
    rays = scene.camera.rays((12, 12))
    hits = cast(scene.solids, scene.camera.position, rays)
    start, along = scene.camera.position.astype(float), rays.T.astype(float)
    for part in np.linspace(0.02, 0.999, 40):
        points = start + part * hits.t[:, None] * along
        assert distances(scene.solids, points).min() > -1e-3
        assert (points > room[0] - 1e-3).all()
        assert (points < room[1] + 1e-3).all()
    points = start + hits.t[:, None] * along
    to_wall = np.minimum(points - room[0], room[1] - points).min(1)
    to_solids = distances(scene.solids, points)
    own = np.concatenate([to_wall[None], to_solids])[hits.solid, np.arange(144)]
    np.testing.assert_allclose(own, 0, atol=1e-4)
