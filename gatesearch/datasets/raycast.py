"""Casts rays into a room full of boxes and balls, in NumPy, all pixels and solids at once.

World and camera share one convention: x right, y down, z forward, metres. The floor is the plane
y = 0, so that objects on it have negative y. Rays are not normalised: a camera ray has z = 1 in
the camera frame, hence its parameter t is the depth along the optical axis.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

_TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: (3,) in metres.
        rotation: (3, 3); column j is the world direction of camera axis j.
        fov: Vertical field of view, radians.
    """

    position: Floats
    rotation: Floats
    fov: float

    def rays(self, size: tuple[int, int]) -> Floats:
        """World directions (3, H * W) through the pixels' centres, with camera-frame z = 1."""
        height, width = size
        focal = 0.5 * height / np.tan(0.5 * self.fov)
        x = (np.arange(width) + 0.5 - 0.5 * width) / focal
        y = (np.arange(height) + 0.5 - 0.5 * height) / focal
        local = np.empty((3, height, width), np.float32)
        local[0], local[1], local[2] = x, y[:, None], 1.0
        return self.rotation @ local.reshape(3, -1)


@dataclass(frozen=True)
class Solids:
    """A room (axis-aligned, seen from inside), K boxes turned about the vertical, S balls.

    Attributes:
        room: (2, 3), its lower and upper corner.
        centres: (K, 3) of the boxes.
        halves: (K, 3), half their edges along the axes of the box.
        yaws: (K,) radians; the x axis of a box is (cos, 0, sin).
        balls: (S, 3), centres.
        radii: (S,).
    """

    room: Floats
    centres: Floats
    halves: Floats
    yaws: Floats
    balls: Floats
    radii: Floats


@dataclass(frozen=True)
class Hits:
    """The first surface that each of P rays meets.

    Attributes:
        t: (P,) ray parameter.
        solid: (P,) 0 = the room, then the boxes, then the balls.
        face: (P,) 2 * axis + (1 on the side of the greater coordinate); 0 on balls.
        points: (3, P) in the frame of the solid (that of the room is the world).
        normals: (3, P) unit, in the world, towards the ray's origin.
    """

    t: Floats
    solid: Ints
    face: Ints
    points: Floats
    normals: Floats


def cast(solids: Solids, origin: Floats, rays: Floats) -> Hits:
    """First hits of rays (3, P) from `origin` (3,), which is in the room and outside all solids."""
    rays = _nonzero(rays)
    start = origin[:, None]
    boxes = len(solids.yaws)

    walls = np.maximum(
        (solids.room[0][:, None] - start) / rays, (solids.room[1][:, None] - start) / rays
    )
    axis = walls.argmin(0)
    t = _pick(walls, axis)
    entries = np.concatenate(
        [t[None], _box_entries(solids, start, rays), _ball_entries(solids, start, rays)]
    )
    solid = entries.argmin(0)
    t = _pick(entries, solid)

    points = start + t * rays
    outward = -np.sign(_pick(rays, axis))
    face = 2 * axis + (outward < 0)
    normals = _along(axis, outward)

    on_box = np.flatnonzero((solid > 0) & (solid <= boxes))
    if len(on_box):
        which = solid[on_box] - 1
        cos, sin = np.cos(solids.yaws[which]), np.sin(solids.yaws[which])
        box_start = _turn(start - solids.centres[which].T, cos, sin)
        box_rays = _nonzero(_turn(rays[:, on_box], cos, sin))
        box_axis = ((-box_start - np.sign(box_rays) * solids.halves[which].T) / box_rays).argmax(0)
        outward = -np.sign(_pick(box_rays, box_axis))
        face[on_box] = 2 * box_axis + (outward > 0)
        normals[:, on_box] = _turn(_along(box_axis, outward), cos, -sin)
        points[:, on_box] = box_start + t[on_box] * box_rays

    on_ball = np.flatnonzero(solid > boxes)
    if len(on_ball):
        from_centre = points[:, on_ball] - solids.balls[solid[on_ball] - 1 - boxes].T
        face[on_ball] = 0
        normals[:, on_ball] = from_centre / np.sqrt(dot(from_centre, from_centre))
        points[:, on_ball] = from_centre
    return Hits(t=t, solid=solid, face=face, points=points, normals=normals)


def blocked(solids: Solids, light: Floats, rays: Floats) -> NDArray[np.bool_]:
    """Whether a box or ball stands in the way of rays (3, P) from `light` (3,) to surfaces.

    A ray ends on its surface at t = 1; the surface itself does not count.
    """
    rays = _nonzero(rays)
    start = light[:, None]
    entries = np.concatenate(
        [_box_entries(solids, start, rays), _ball_entries(solids, start, rays)]
    )
    return np.asarray(entries.min(0, initial=np.inf) < 1 - 1e-3)


def _box_entries(solids: Solids, start: Floats, rays: Floats) -> Floats:
    """Where rays (3, P) from `start` (3, 1) enter K boxes, (K, P); infinite where they miss."""
    cos, sin = np.cos(solids.yaws)[:, None], np.sin(solids.yaws)[:, None]
    x, y, z = (solids.centres - start[:, 0]).T[..., None]
    ways = (
        (cos * x + sin * z, cos * rays[0] + sin * rays[2], 0),
        (cos * z - sin * x, cos * rays[2] - sin * rays[0], 2),
        (y, rays[1:2], 1),
    )
    near: Floats = np.asarray(-np.inf, np.float32)
    far = -near
    for centre, along, axis in ways:
        inverse = 1 / _nonzero(along)
        middle = centre * inverse
        reach = solids.halves[:, axis, None] * np.abs(inverse)
        near = np.maximum(near, middle - reach)
        middle += reach
        far = np.minimum(far, middle)
    return np.where((near < far) & (near > 0), near, np.float32(np.inf))


def _ball_entries(solids: Solids, start: Floats, rays: Floats) -> Floats:
    """Where rays (3, P) from `start` (3, 1) enter S balls, (S, P); infinite where they miss."""
    entries = np.full((len(solids.radii), rays.shape[1]), np.inf, np.float32)
    a = dot(rays, rays)
    for row, centre, radius in zip(entries, solids.balls, solids.radii, strict=True):
        gap = start - centre[:, None]
        b = dot(gap, rays)
        root = b * b - a * (dot(gap, gap) - radius**2)
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        met = (root > 0) & (t > 0)
        row[met] = t[met]
    return entries


def _turn(vectors: Floats, cos: Floats, sin: Floats) -> Floats:
    """World vectors (3, P) in frames whose x axis is (cos, 0, sin); with -sin the inverse."""
    x, y, z = vectors
    return np.stack([cos * x + sin * z, np.broadcast_to(y, cos.shape), cos * z - sin * x])


def _along(axis: Ints, sign: Floats) -> Floats:
    """Unit vectors (3, P) along axes (P,), with signs (P,)."""
    return np.where(axis == np.arange(3)[:, None], sign, np.float32(0))


def _pick(rows: Floats, index: Ints) -> Floats:
    """Element `index[p]` of every column p."""
    chosen: Floats = rows[index, np.arange(rows.shape[1])]
    return chosen


def dot(a: Floats, b: Floats) -> Floats:
    """Scalar products of vectors (3, P) or (3, 1)."""
    return np.asarray(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def _nonzero(rays: Floats) -> Floats:
    """The same rays without exact zeros, which would divide by zero at faces parallel to them."""
    moved: Floats = rays + _TINY
    return moved
