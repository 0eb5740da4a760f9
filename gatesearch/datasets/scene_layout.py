"""Draws the rooms of the scenes at random: furniture, pictures, paint, lamps, and the camera.

Paint is drawn without regard to class (only ceilings and walls lean towards white), so that a
network must tell classes apart by shape and place: a table is a slab on panels, a cabinet stands
tall against a wall, a box is low.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.raycast import Camera, Floats, Ints, Solids

CLASSES = ("floor", "ceiling", "wall", "picture", "table", "cabinet", "box", "ball")
_FLOOR, _CEILING, _WALL, _PICTURE, _TABLE, _CABINET, _BOX, _BALL = range(len(CLASSES))
FACES = 6
# By `Paints.kind`.
TEXTURES = ("plain", "checker", "stripes", "noise")


@dataclass(frozen=True)
class Paints:
    """N solid textures, evaluated at points in the frame of the solid that they cover.

    Attributes:
        kind: (N,) 0 plain, 1 checker, 2 stripes, 3 noise.
        colours: (2, 3, N) linear RGB in 0..1, mixed by the texture.
        waves: (3, N) direction times cells per metre.
        phase: (3, N) offset in cells.
    """

    kind: Ints
    colours: Floats
    waves: Floats
    phase: Floats


@dataclass(frozen=True)
class Scene:
    """One furnished room with its lamps and camera.

    Surfaces are numbered `6 * solid + face` (see `raycast.Hits`), pictures after them.

    Attributes:
        solids: Room, boxes, balls.
        camera: The camera that sees it.
        pictures: (M, 2, 3) corners of thin boxes in the walls' planes.
        classes: (surfaces,) class of each.
        paint: (surfaces,) index into `paints`.
        paints: Textures.
        lights: (L, 3) positions, metres.
        strengths: (L, 3) RGB at the light.
        ambient: Light from all directions, where a lamp's is about 1.
    """

    solids: Solids
    camera: Camera
    pictures: Floats
    classes: NDArray[np.uint8]
    paint: Ints
    paints: Paints
    lights: Floats
    strengths: Floats
    ambient: float


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a room, its furniture and pictures, paint, lamps and camera."""
    width, depth = rng.uniform(3.5, 7.0, 2)
    height = rng.uniform(2.3, 3.2)
    room = np.array([(-width / 2, -height, -depth / 2), (width / 2, 0, depth / 2)], np.float32)
    camera = _camera(rng, room)
    plan = _Plan(rng, room, camera)
    for _ in range(rng.integers(1, 4)):
        plan.cabinet()
    for _ in range(rng.integers(1, 3)):
        plan.table()
    for _ in range(rng.integers(2, 6)):
        plan.box()
    for _ in range(rng.integers(1, 4)):
        plan.ball()
    pictures = np.array(
        [_picture(rng, room, camera) for _ in range(rng.integers(1, 4))], np.float32
    )
    solids = Solids(
        room=room,
        centres=np.array(plan.centres, np.float32).reshape(-1, 3),
        halves=np.array(plan.halves, np.float32).reshape(-1, 3),
        yaws=np.array(plan.yaws, np.float32),
        balls=np.array(plan.balls, np.float32).reshape(-1, 3),
        radii=np.array(plan.radii, np.float32),
    )
    lamps = int(rng.integers(1, 3))
    lights = rng.uniform(room[0] * 0.7, room[1] * 0.7, (lamps, 3)).astype(np.float32)
    lights[:, 1] = -height + 0.15
    strengths = rng.uniform(0.8, 1.6, (lamps, 1)) * rng.uniform((0.9, 0.85, 0.7), 1, (lamps, 3))
    kinds = [*plan.kinds, *([_BALL] * len(plan.balls))]
    room_classes = [_WALL, _WALL, _CEILING, _FLOOR, _WALL, _WALL]
    classes = room_classes + [k for k in kinds for _ in range(FACES)] + [_PICTURE] * len(pictures)
    # Paint 0 is the floor's, 1 the ceiling's, 2 the walls', then one per object and per picture.
    owners = [*plan.owners, *range(plan.objects - len(plan.balls), plan.objects)]
    paint = [2, 2, 1, 0, 2, 2] + [3 + owner for owner in owners for _ in range(FACES)]
    paint += [3 + plan.objects + i for i in range(len(pictures))]
    return Scene(
        solids=solids,
        camera=camera,
        pictures=pictures,
        classes=np.array(classes, np.uint8),
        paint=np.array(paint, np.intp),
        paints=_paints(rng, 3 + plan.objects + len(pictures)),
        lights=lights,
        strengths=strengths.astype(np.float32),
        ambient=float(rng.uniform(0.2, 0.4)),
    )


@dataclass
class _Plan:
    """The floor plan while it fills up; circles keep solids and camera apart.

    `kinds` and `owners` (which object a box belongs to) go with `centres`; the boxes' objects
    are numbered before the balls', which are placed last.
    """

    rng: np.random.Generator
    room: Floats
    camera: Camera
    centres: list[tuple[float, float, float]] = field(default_factory=list)
    halves: list[tuple[float, float, float]] = field(default_factory=list)
    yaws: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    balls: list[tuple[float, float, float]] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    objects: int = 0
    circles: list[tuple[float, float, float]] = field(default_factory=list)
    # Table tops that are still free: x, height of the top, z, radius.
    tops: list[tuple[float, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        x, _, z = self.camera.position
        self.circles.append((float(x), float(z), 0.5))

    def cabinet(self) -> None:
        """A tall box with its back to a wall."""
        wide, deep = self.rng.uniform(0.3, 0.8), self.rng.uniform(0.18, 0.35)
        tall = self.rng.uniform(0.9, 2.1) / 2
        across, side = _wall_ahead(self.rng, self.camera)
        along = 2 - across
        place = [0.0, -tall, 0.0]
        place[along] = self.rng.uniform(self.room[0][along] + wide, self.room[1][along] - wide)
        place[across] = float(self.room[side][across]) + (-deep if side else deep)
        if self._free(place[0], place[2], math.hypot(wide, deep)):
            yaw = 0.0 if along == 0 else math.pi / 2
            self._box(_CABINET, place, (wide, tall, deep), yaw, new=True)

    def table(self) -> None:
        """A slab on two panels."""
        wide, deep = self.rng.uniform(0.4, 0.9), self.rng.uniform(0.3, 0.5)
        tall, thick = self.rng.uniform(0.45, 0.85), self.rng.uniform(0.02, 0.05)
        radius = math.hypot(wide, deep)
        spot = self._spot(radius)
        if spot is None:
            return
        x, z = spot
        yaw = self.rng.uniform(0, math.pi)
        self._box(_TABLE, (x, thick - tall, z), (wide, thick, deep), yaw, new=True)
        inset, leg = wide * self.rng.uniform(0.6, 0.95), self.rng.uniform(0.025, 0.06)
        under = (tall - 2 * thick) / 2
        for sign in (-1, 1):
            foot = (x + sign * inset * math.cos(yaw), -under, z + sign * inset * math.sin(yaw))
            self._box(_TABLE, foot, (leg, under, deep * 0.85), yaw, new=False)
        self.tops.append((x, -tall, z, min(wide, deep)))

    def box(self) -> None:
        """A low box on the floor or on a table."""
        spot = self._seat(self.rng.uniform(0.18, 0.45))
        if spot is not None:
            x, y, z, radius = spot
            turn = self.rng.uniform(0.5, 1.1)
            wide, deep = radius * math.cos(turn), radius * math.sin(turn)
            tall = radius * self.rng.uniform(0.35, 0.8)
            yaw = self.rng.uniform(0, math.pi)
            self._box(_BOX, (x, y - tall, z), (wide, tall, deep), yaw, new=True)

    def ball(self) -> None:
        """A ball on the floor or on a table."""
        spot = self._seat(self.rng.uniform(0.14, 0.4))
        if spot is not None:
            x, y, z, radius = spot
            self.balls.append((x, y - radius, z))
            self.radii.append(radius)
            self.objects += 1

    def _box(self, kind: int, centre: Any, half: Any, yaw: float, *, new: bool) -> None:
        self.objects += new
        self.centres.append(centre)
        self.halves.append(half)
        self.yaws.append(yaw)
        self.kinds.append(kind)
        self.owners.append(self.objects - 1)

    def _seat(self, radius: float) -> tuple[float, float, float, float] | None:
        if self.tops and self.rng.random() < 0.5:
            x, y, z, free = self.tops.pop()
            return x, y, z, min(radius, free)
        spot = self._spot(radius)
        return None if spot is None else (spot[0], 0.0, spot[1], radius)

    def _spot(self, radius: float) -> tuple[float, float] | None:
        for attempt in range(8):
            x = self.rng.uniform(float(self.room[0][0]) + radius, float(self.room[1][0]) - radius)
            z = self.rng.uniform(float(self.room[0][2]) + radius, float(self.room[1][2]) - radius)
            if (attempt > 4 or self._ahead(x, z)) and self._free(x, z, radius):
                return x, z
        return None

    def _ahead(self, x: float, z: float) -> bool:
        across, along = x - float(self.camera.position[0]), z - float(self.camera.position[2])
        forward = self.camera.rotation[:, 2]
        return bool(across * forward[0] + along * forward[2] > 0.75 * math.hypot(across, along))

    def _free(self, x: float, z: float, radius: float) -> bool:
        free = all(math.hypot(x - a, z - b) > radius + r for a, b, r in self.circles)
        if free:
            self.circles.append((x, z, radius))
        return free


def _camera(rng: np.random.Generator, room: Floats) -> Camera:
    position = rng.uniform(room[0] + 0.4, room[1] - 0.4)
    position[1] = -rng.uniform(1.0, 1.8)
    # Look across the middle of the room: the far side is where there is something to see.
    goal = rng.uniform(room[0], room[1]) * 0.35
    yaw = np.arctan2(goal[0] - position[0], goal[2] - position[2]) + rng.normal(0, 0.15)
    pitch = np.deg2rad(rng.uniform(-4, 24))
    roll = np.deg2rad(rng.normal(0, 2))
    level = np.array((np.sin(yaw), 0, np.cos(yaw)))
    right = np.array((np.cos(yaw), 0, -np.sin(yaw)))
    down = np.array((0.0, 1.0, 0.0))
    forward = np.cos(pitch) * level + np.sin(pitch) * down
    down = np.cos(pitch) * down - np.sin(pitch) * level
    right, down = (
        np.cos(roll) * right + np.sin(roll) * down,
        np.cos(roll) * down - np.sin(roll) * right,
    )
    return Camera(
        position=position.astype(np.float32),
        rotation=np.stack([right, down, forward], axis=1).astype(np.float32),
        fov=float(np.deg2rad(rng.uniform(48, 75))),
    )


def _wall_ahead(rng: np.random.Generator, camera: Camera) -> tuple[int, int]:
    """A wall that the camera looks towards: its axis, and 0 or 1 for its lower or upper side."""
    forward = camera.rotation[:, 2]
    axis = 0 if rng.random() * (forward[0] ** 2 + forward[2] ** 2) < forward[0] ** 2 else 2
    return axis, int(forward[axis] > 0)


def _picture(rng: np.random.Generator, room: Floats, camera: Camera) -> Floats:
    across, side = _wall_ahead(rng, camera)
    along = 2 - across
    half = np.zeros(3)
    half[along], half[1], half[across] = rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.5), 0.01
    centre = np.zeros(3)
    centre[along] = rng.uniform(room[0][along] + half[along], room[1][along] - half[along])
    centre[1] = -rng.uniform(1.3, 1.7)
    centre[across] = room[side][across]
    return np.stack([centre - half, centre + half]).astype(np.float32)


def _paints(rng: np.random.Generator, count: int) -> Paints:
    colours = rng.uniform(0.08, 0.95, (count, 2, 3))
    grey = colours.mean(-1, keepdims=True)
    colours = grey + rng.uniform(0.3, 1.2, (count, 1, 1)) * (colours - grey)
    colours = colours.clip(0.04, 1)
    # Ceilings and walls (paints 1, 2) lean towards white, as in houses.
    colours[1:3] = colours[1:3] * 0.6 + 0.4
    directions = rng.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    kind = rng.choice(4, count, p=(0.3, 0.2, 0.2, 0.3))
    cells = np.exp(rng.uniform(np.log(1.5), np.log(7), (count, 1)))
    # Checkers and noise live on a lattice along the axes; stripes run along one direction.
    waves = np.where((kind == 2)[:, None], directions, 1.0) * cells
    return Paints(
        kind=kind,
        colours=np.ascontiguousarray(colours.transpose(1, 2, 0), np.float32),
        waves=np.ascontiguousarray(waves.T, np.float32),
        phase=rng.uniform(0, 64, (3, count)).astype(np.float32),
    )
