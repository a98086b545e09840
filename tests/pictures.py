"""Pictures that tests draw."""

from __future__ import annotations

from PIL import Image, ImageDraw


def picture(label: str, seed: int) -> Image.Image:
    """Dark ink on white paper."""
    image = Image.new("L", (40, 40), 255)
    draw, shift = ImageDraw.Draw(image), seed % 4
    if label == "bar":
        draw.rectangle((17 + shift, 4, 22 + shift, 36), fill=0)
    elif label == "dot":
        draw.ellipse((12 + shift, 14, 22 + shift, 24), fill=0)
    else:
        draw.ellipse((5, 5 + shift, 34, 34 + shift), outline=0, width=4)
    return image
