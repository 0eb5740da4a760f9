"""Put a colour bar below a picture, with the values at both ends of its colour scale."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gatesearch.drawing import Drawing, Limits

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
# Pixels of the letters: a share of the picture's width, within bounds.
_LETTERS_PER_WIDTH = 40
_SMALLEST, _LARGEST = 11, 120


def add_colour_bar(
    picture: Image.Image, drawing: Drawing, limits: Limits, *, unit: str
) -> Image.Image:
    """Add a colour bar below a picture, whose own pixels stay as they are, from the top left.

    Args:
        picture: The picture, RGB. A narrow one is widened to the right, in white, for the text.
        drawing: The drawing, which has a colour scale.
        limits: Values at both ends of the scale.
        unit: Unit of the values.
    """
    size = min(max(picture.width // _LETTERS_PER_WIDTH, _SMALLEST), _LARGEST)
    font = ImageFont.load_default(size)
    low, high = f"{limits[0]:g}", f"{limits[1]:g} {unit}".strip()
    text_width = int(font.getlength(low) + font.getlength(high)) + 2 * size
    width = max(picture.width, text_width)
    canvas = Image.new("RGB", (width, picture.height + 3 * size), _WHITE)
    canvas.paste(picture, (0, 0))
    shares = np.tile(np.linspace(0, 1, width), (size, 1))
    canvas.paste(Image.fromarray(drawing.paint(shares)), (0, picture.height + size // 2))
    text = ImageDraw.Draw(canvas)
    top = picture.height + size // 2 + size
    text.text((0, top), low, _BLACK, font)
    text.text((width, top), high, _BLACK, font, anchor="ra")
    return canvas
