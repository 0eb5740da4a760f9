"""Scenes: furnished rooms rendered on the spot, with exact labels for four tasks.

Every frame is a function of (seed, split, index) alone, whatever number of frames is asked for.
A surface is one smooth piece: a wall, one face of a box, a ball, a picture. Labels follow from the
surface each pixel's ray meets first; edges are where the surface changes. Paint is drawn without
regard to class (only ceilings and walls lean towards white), so that classes must be told apart
by shape and place: a table is a slab on panels, a cabinet stands tall against a wall, a box is low.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.dataset import Dataset
from gatesearch.datasets.edges import boundaries
from gatesearch.datasets.pack import SPLITS, Emit, SplitName
from gatesearch.datasets.packing import SplitFrames, write_pack
from gatesearch.datasets.raycast import Camera, Floats, Ints, Solids, blocked, cast, dot
from gatesearch.errors import UsageError

CLASSES = ("floor", "ceiling", "wall", "picture", "table", "cabinet", "box", "ball")
SIZE = (64, 64)
TRAIN_FRAMES = 640
TEST_FRAMES = 160
# Part of every pack's name: raise it whenever the same index would give another frame.
VERSION = 1
_SEED = 20241
_FLOOR, _CEILING, _WALL, _PICTURE, _TABLE, _CABINET, _BOX, _BALL = range(len(CLASSES))
_FACES = 6


@dataclass(frozen=True)
class Paints:
    """Solid textures, N of them, evaluated at points in a surface's own frame.

    Attributes:
        kind: (N,) 0 plain, 1 checker, 2 stripes, 3 noise.
        colours: (2, 3, N) linear RGB in 0..1, mixed by the texture.
        waves: (3, N) direction times cells a metre.
        phase: (3, N) offset in cells.
    """

    kind: Ints
    colours: Floats
    waves: Floats
    phase: Floats


@dataclass(frozen=True)
class Scene:
    """One furnished room, lit and seen.

    Surfaces are numbered `6 * solid + face` (see `raycast.Hits`), pictures after them.

    Attributes:
        solids: Room, boxes, balls.
        camera: Where it is seen from.
        pictures: (M, 2, 3) corners of thin boxes in the walls' planes.
        classes: (surfaces,) class of each.
        paint: (surfaces,) index into `paints`.
        paints: Textures.
        lights: (L, 3) positions, metres.
        strengths: (L, 3) RGB at the light.
        ambient: Light from everywhere, beside the lamps' 1.
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


def render(
    index: int, *, split: SplitName, size: tuple[int, int] = SIZE
) -> dict[str, NDArray[Any]]:
    """Frame `index` of a split, with all labels.

    Returns:
        `image` (H, W, 3) uint8; `semseg` (H, W) uint8; `depth` (H, W) float32, metres along the
        optical axis; `normals` (H, W, 3) float32, unit, camera frame; `edges` (H, W) uint8.
    """
    rng = np.random.default_rng([_SEED, VERSION, SPLITS.index(split), index])
    scene = furnish(rng)
    labels, light = trace(scene, size)
    return {"image": expose(light, rng), **labels}


def trace(scene: Scene, size: tuple[int, int]) -> tuple[dict[str, NDArray[Any]], Floats]:
    """Exact labels of a scene, as `render` returns them, and its light (H, W, 3), unscaled."""
    camera, solids = scene.camera, scene.solids
    rays = camera.rays(size)
    hits = cast(solids, camera.position, rays)
    surface = _FACES * hits.solid + hits.face
    surfaces = _FACES * (1 + len(solids.yaws) + len(solids.radii))
    on_room = hits.solid == 0
    for number, (lower, upper) in enumerate(scene.pictures):
        inside = (hits.points >= lower[:, None]) & (hits.points <= upper[:, None])
        surface[on_room & inside.all(0)] = surfaces + number
    ids = surface.reshape(size)
    labels: dict[str, NDArray[Any]] = {
        "semseg": scene.classes[ids],
        "depth": hits.t.reshape(size),
        "normals": (camera.rotation.T @ hits.normals).T.reshape(*size, 3),
        "edges": boundaries(ids),
    }
    points = camera.position[:, None] + hits.t * rays
    received = np.full((3, len(hits.t)), scene.ambient, np.float32)
    for position, strength in zip(scene.lights, scene.strengths, strict=True):
        beams = points - position[:, None]
        square = dot(beams, beams)
        lit = np.maximum(-dot(beams, hits.normals), 0) / (np.sqrt(square) * (1 + square / 6))
        lit[blocked(solids, position, beams)] = 0
        received += strength[:, None] * lit
    light = _albedo(scene.paints, scene.paint[surface], hits.points) * received
    return labels, light.T.reshape(*size, 3)


def expose(light: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A camera's picture of light (H, W, 3): exposure, vignetting, tone curve, sensor noise."""
    height, width = light.shape[:2]
    mean = float(light.mean())
    picture = light * np.float32(rng.uniform(0.18, 0.36) / max(mean, 1e-3))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    picture *= (1 - np.float32(rng.uniform(0, 0.25)) * (x * x + y * y))[..., None]
    picture = np.sqrt(np.clip(picture, 0, 1))
    noise = rng.standard_normal(picture.shape, np.float32)
    picture += np.float32(rng.uniform(0.005, 0.03)) * noise
    return np.asarray(np.clip(picture, 0, 1) * 255 + 0.5, np.uint8)


def furnish(rng: np.random.Generator) -> Scene:
    """Draw a room, what stands and hangs in it, its paint, lamps and camera."""
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
    classes = room_classes + [k for k in kinds for _ in range(_FACES)] + [_PICTURE] * len(pictures)
    # Paint 0 floor, 1 ceiling, 2 walls, then one an object and a picture.
    owners = [*plan.owners, *range(plan.objects - len(plan.balls), plan.objects)]
    paint = [2, 2, 1, 0, 2, 2] + [3 + owner for owner in owners for _ in range(_FACES)]
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


def _albedo(paints: Paints, paint: Ints, points: Floats) -> Floats:
    """RGB (3, P) of paint (P,) at points (3, P) of the surfaces' own frames."""
    cells = points * paints.waves.take(paint, 1)
    kind = paints.kind[paint]
    mix = np.zeros(len(paint), np.float32)
    stripes = np.flatnonzero(kind == 2)
    mix[stripes] = np.floor(2 * cells[:, stripes].sum(0)).astype(np.int32) & 1
    cells += paints.phase.take(paint, 1)
    checker = np.flatnonzero(kind == 1)
    mix[checker] = np.floor(cells[:, checker]).astype(np.int32).sum(0) & 1
    noise = np.flatnonzero(kind == 3)
    mix[noise] = _value_noise(cells[:, noise] * 2)
    first, second = paints.colours.take(paint, 2)
    second -= first
    second *= mix
    second += first
    return np.asarray(second)


def _value_noise(cells: Floats) -> Floats:
    """Smooth noise in 0..1 at (3, P): hashed lattice values, cubic blending."""
    base = np.floor(cells)
    part = cells - base
    blend = part * part * (3 - 2 * part)
    corner = base.astype(np.int32).view(np.uint32)
    primes = np.array((73856093, 19349663, 83492791), np.uint32)
    hashed = [(corner[i] * primes[i], (corner[i] + np.uint32(1)) * primes[i]) for i in range(3)]
    total = np.zeros(cells.shape[1], np.float32)
    for i in (0, 1):
        for j in (0, 1):
            for k in (0, 1):
                mixed = (hashed[0][i] ^ hashed[1][j] ^ hashed[2][k]) * np.uint32(2654435761)
                mixed ^= mixed >> np.uint32(15)
                weight = np.abs(1 - i - blend[0]) * np.abs(1 - j - blend[1])
                total += weight * np.abs(1 - k - blend[2]) * (mixed & np.uint32(1023))
    return total / np.float32(1023)


def _prepare(
    *,
    folder: Path,
    source: Path | None,
    size: tuple[int, int] | None,
    train_frames: int,
    test_frames: int,
    emit: Emit,
) -> Path:
    if source is not None:
        raise UsageError(f"scenes are rendered and take no source, found {source}; leave it out")
    size = size or SIZE
    if min(size) < 2:
        raise UsageError(f"size must be at least 2 x 2 pixels, found {size[0]} x {size[1]}")
    counts = {"train": train_frames or TRAIN_FRAMES, "test": test_frames or TEST_FRAMES}
    return write_pack(
        folder / _pack_name(size, len(CLASSES), train_frames, test_frames),
        dataset="scenes",
        size=size,
        classes={"semseg": len(CLASSES)},
        splits={
            split: SplitFrames(
                ids=[f"{split}-{i:05d}" for i in range(counts[split])],
                frames=_frames(split, counts[split], size),
            )
            for split in SPLITS
        },
        source=f"rendered by gatesearch.datasets.scenes, version {VERSION}, seed {_SEED}",
        emit=emit,
    )


def _frames(split: SplitName, count: int, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    return (render(index, split=split, size=size) for index in range(count))


def _pack_name(
    size: tuple[int, int] | None, classes: int | None, train_frames: int, test_frames: int
) -> str:
    height, width = size or SIZE
    frames = f"{train_frames or TRAIN_FRAMES}-{test_frames or TEST_FRAMES}"
    return f"scenes-v{VERSION}-{height}x{width}-{frames}"


def _info() -> str:
    return f"""scenes: furnished rooms, rendered on the spot; nothing to download.

Frames   {TRAIN_FRAMES} to train and {TEST_FRAMES} to test at {SIZE[0]}x{SIZE[1]};
         a study may ask for others
Labels   semseg ({len(CLASSES)} classes: {", ".join(CLASSES)}),
         depth (metres), normals, edges; all exact
Command  none needed: `gatesearch run --study scenes` renders what it lacks.
         Ahead of time: gatesearch data prepare scenes --data DIR"""


DATASET = Dataset(
    name="scenes",
    summary="rooms rendered on the spot, exact labels for semseg, depth, normals, edges",
    automatic=True,
    info=_info,
    pack_name=_pack_name,
    prepare=_prepare,
)
