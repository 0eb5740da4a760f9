"""Scenes: furnished rooms rendered on demand, with exact labels for four tasks and for three more.

Every frame is a function of (seed, split, index) alone, however many frames a study asks for.
A surface is one smooth piece: a wall, one face of a box, a ball, a picture. Labels follow from the
surface each pixel's ray meets first; edges are where the surface changes. The further labels are
in the pack of a study that has a task for them, and in no other, so that packs stay as they were.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.dataset import Dataset, PackRequest, field_of
from gatesearch.datasets.edges import boundaries
from gatesearch.datasets.pack_manifest import SplitName
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.raycast import Floats, Ints, blocked, cast, dot
from gatesearch.datasets.scene_layout import (
    CLASSES,
    FACES,
    TEXTURES,
    Paints,
    Scene,
    random_scene,
)
from gatesearch.errors import UsageError
from gatesearch.events import Emit
from gatesearch.tasks import build_task, named_classes

SIZE = (64, 64)
# Field, which is also its kind -> names of its classes.
LABELS: dict[str, tuple[str, ...]] = {"semseg": CLASSES, "depth": (), "normals": (), "edges": ()}
# Further field -> its kind and the names of its classes.
FURTHER: dict[str, tuple[str, tuple[str, ...]]] = {
    "light": ("normals", ()),
    "reflectance": ("reflectance", ()),
    "texture": ("semseg", TEXTURES),
}
TRAIN_FRAMES = 640
TEST_FRAMES = 160
# Part of every pack's name: raise it whenever the same index would give another frame.
VERSION = 1
_SEED = 20241
# The place of a split is part of the seed of its frames.
_SPLITS: tuple[SplitName, ...] = ("train", "test")


def render(
    index: int, *, split: SplitName, size: tuple[int, int] = SIZE, further: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """Frame `index` of a split, with its labels.

    Args:
        index: Number of the frame in its split.
        split: `train` or `test`.
        size: Height and width in pixels.
        further: Names in `FURTHER` of labels that are wanted beside the usual ones.

    Returns:
        `image` (H, W, 3) uint8; `semseg` (H, W) uint8; `depth` (H, W) float32, metres along the
        optical axis; `normals` (H, W, 3) float32, unit, camera frame; `edges` (H, W) uint8. If they
        are wanted, `texture` (H, W) uint8; `reflectance` (H, W) float32, mean of red, green and
        blue, 0..1; `light` (H, W, 3) float32, unit, camera frame: the direction from which the
        light of the lamps comes on average, were nothing in its way.
    """
    rng = np.random.default_rng([_SEED, VERSION, _SPLITS.index(split), index])
    scene = random_scene(rng)
    labels, light = trace(scene, size, further)
    return {"image": expose(light, rng), **labels}


def trace(
    scene: Scene, size: tuple[int, int], further: Collection[str] = ()
) -> tuple[dict[str, NDArray[Any]], Floats]:
    """Exact labels of a scene, as in `render`, and the light (H, W, 3) from it, not yet exposed."""
    camera, solids = scene.camera, scene.solids
    rays = camera.rays(size)
    hits = cast(solids, camera.position, rays)
    surface = FACES * hits.solid + hits.face
    surfaces = FACES * (1 + len(solids.yaws) + len(solids.radii))
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
    arriving = np.zeros_like(points)
    for position, strength in zip(scene.lights, scene.strengths, strict=True):
        beams = points - position[:, None]
        square = dot(beams, beams)
        arriving -= strength.mean() * beams / (np.sqrt(square) * (1 + square / 6))
        lit = np.maximum(-dot(beams, hits.normals), 0) / (np.sqrt(square) * (1 + square / 6))
        lit[blocked(solids, position, beams)] = 0
        received += strength[:, None] * lit
    paint = scene.paint[surface]
    albedo = _albedo(scene.paints, paint, hits.points)
    if "texture" in further:
        labels["texture"] = scene.paints.kind[paint].astype(np.uint8).reshape(size)
    if "reflectance" in further:
        labels["reflectance"] = albedo.mean(0).reshape(size)
    if "light" in further:
        towards = camera.rotation.T @ (arriving / np.sqrt(dot(arriving, arriving)))
        labels["light"] = towards.T.reshape(*size, 3)
    return labels, (albedo * received).T.reshape(*size, 3)


def expose(light: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn light (H, W, 3) into a camera's picture: exposure, vignetting, tone curve, noise."""
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


def _albedo(paints: Paints, paint: Ints, points: Floats) -> Floats:
    """RGB (3, P) of paint (P,) at points (3, P) in the frames of their solids."""
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


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    if source is not None:
        raise UsageError(f"scenes are rendered and take no source, found {source}; leave it out")
    size = request.size or SIZE
    if min(size) < 2:
        raise UsageError(f"size must be at least 2 x 2 pixels, found {size[0]} x {size[1]}")
    counts = {
        "train": request.train_frames or TRAIN_FRAMES,
        "test": request.test_frames or TEST_FRAMES,
    }
    further = _further(request)
    kinds = {field: (field, names) for field, names in LABELS.items()}
    kinds |= {field: FURTHER[field] for field in further}
    return write_pack(
        folder / _pack_name(request),
        dataset="scenes",
        size=size,
        fields={
            field: build_task(kind, named_classes(names), where="scenes")
            for field, (kind, names) in kinds.items()
        },
        splits={
            split: SplitFrames(
                ids=[f"{split}-{i:05d}" for i in range(counts[split])],
                frames=partial(render, split=split, size=size, further=further),
            )
            for split in _SPLITS
        },
        source=f"rendered by gatesearch.datasets.scenes, version {VERSION}, seed {_SEED}",
        identity=f"version {VERSION}, seed {_SEED}",
        emit=emit,
    )


def _pack_name(request: PackRequest) -> str:
    height, width = request.size or SIZE
    frames = f"{request.train_frames or TRAIN_FRAMES}-{request.test_frames or TEST_FRAMES}"
    return "-".join([f"scenes-v{VERSION}-{height}x{width}-{frames}", *_further(request)])


def _further(request: PackRequest) -> tuple[str, ...]:
    """Name the further labels that a study has tasks for."""
    specs = {} if request.study is None else request.study.tasks
    fields = {field_of(name, spec) for name, spec in specs.items()}
    return tuple(sorted(fields & FURTHER.keys()))


def _info() -> str:
    return f"""scenes: furnished rooms, rendered on the spot; nothing to download.

Frames   {TRAIN_FRAMES} to train and {TEST_FRAMES} to test at {SIZE[0]}x{SIZE[1]};
         a study may ask for others
Labels   semseg ({len(CLASSES)} classes: {", ".join(CLASSES)}),
         depth (metres), normals, edges; all exact. For a study with tasks of these names or
         labels also texture (kind semseg, {len(TEXTURES)} classes: {", ".join(TEXTURES)}),
         reflectance, and light (kind normals), the direction towards the lamps
Command  none needed: `gatesearch run --study scenes` renders what it lacks.
         Ahead of time: gatesearch data prepare scenes --data DIR"""


DATASET = Dataset(
    name="scenes",
    summary="rooms rendered on the spot, exact labels for semseg, depth, normals, edges and more",
    automatic=True,
    info=_info,
    pack_name=_pack_name,
    prepare=_prepare,
    class_names={("semseg", len(CLASSES)): CLASSES, ("texture", len(TEXTURES)): TEXTURES},
)
