"""Images of other shapes: a network sees them as it saw its training frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from gatesearch.datasets.folder.fit import fit_image, place
from gatesearch.export.draw import draw_predictions, predict_file
from gatesearch.export.reader import Model
from gatesearch.export.shipped import Card, TaskCard

SIZE = (32, 48)
FITS = ("stretch", "crop", "pad")


def model(fit: str, seen: list[np.ndarray] | None = None) -> Model:
    """A network that takes red over 25.5 for metres, and the brightest green for a point."""

    def run(image: np.ndarray) -> list[np.ndarray]:
        if seen is not None:
            seen.append(image[0])
        return [image[:, :1] / 25.5, image[:, 1:2]]

    cards = {
        "depth": TaskCard(kind="depth", classes=1, values="metres", metric="RMSE m", measured={}),
        "spot": TaskCard(kind="keypoints", classes=1, values="", metric="PCK", measured={}),
    }
    card = Card(
        study="s", fingerprint="f", protocol="p", network="mtl", size=SIZE, fit=fit, gflops=1,
        params_m=1, tasks=cards,
    )  # fmt: skip
    return Model(card, run)


def photo(folder, height: int, width: int, spot: tuple[int, int]):
    """A red ramp from left to right, with a green dot of 5 pixels."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 200, width).round()
    pixels[spot[0] - 2 : spot[0] + 3, spot[1] - 2 : spot[1] + 3, 1] = 255
    path = folder / "photo.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(64, 96), (40, 120), (240, 100)])
def test_the_network_sees_what_training_frames_were(tmp_path, fit, shape) -> None:
    path, pixels = photo(tmp_path, *shape, spot=(shape[0] // 2, shape[1] // 2))
    seen: list[np.ndarray] = []
    predict_file(model(fit, seen), path)
    image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())
    expected = fit_image(image, place(shape, SIZE, fit))[0].float().numpy()
    assert np.abs(seen[0] - expected).max() <= 2  # grey levels: Pillow's filter against torch's


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(64, 96), (40, 120), (240, 100)])
def test_predictions_come_back_to_the_image(tmp_path, fit, shape) -> None:
    height, width = shape
    spot = (height // 2 + 6, width // 2 - 8)
    path, _ = photo(tmp_path, height, width, spot)
    made = predict_file(model(fit), path)
    x, y, _ = made.values["spot"][0]
    found = ((y + 1) / 2 * height - 0.5, (x + 1) / 2 * width - 0.5)
    pixel = max(height / SIZE[0], width / SIZE[1])  # one of the network's, in the image
    assert np.hypot(found[0] - spot[0], found[1] - spot[1]) <= 0.75 * pixel

    *_, values = draw_predictions(model(fit).card, made, tmp_path)
    assert values.path.name == "photo.values.npz"
    drawn = np.asarray(Image.open(tmp_path / "photo.depth.png"))[:height]
    assert drawn.shape[1] == width
    placed = place(shape, SIZE, fit)
    outside = np.ones(shape, bool)
    rows = slice(placed.top, placed.top + placed.window[0])
    columns = slice(placed.left, placed.left + placed.window[1])
    outside[rows, columns] = False
    assert (drawn[outside] == 0).all()  # a crop's borders were not seen
    # Depth grows to the right, and so does the green of the colour scale.
    middle = drawn[rows, columns][:, :, 1].astype(int)[2]
    assert middle[-3] > middle[len(middle) // 2] > middle[3]


def test_a_card_without_a_fit_stretches() -> None:
    card = model("pad").card.model_dump(mode="json")
    del card["fit"]
    assert Card.model_validate(card).fit == "stretch"
