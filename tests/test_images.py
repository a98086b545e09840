"""Images of every mode and kind of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from metazoo import DataError
from metazoo.images import decode, is_image


def png(image, **options):
    file = io.BytesIO()
    image.save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def grey(source, size=8, **options):
    return decode(source, size=size, channels=1, invert=False, **options)


def one_pixel(image, channels=3):
    return decode(image, size=8, channels=channels, invert=False)[:, 4, 4].tolist()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
)
def test_every_mode_gives_the_same_shape_and_type(mode, channels):
    x = decode(Image.new(mode, (31, 17)), size=12, channels=channels, invert=False)
    assert x.shape == (channels, 12, 12)
    assert x.dtype == torch.uint8
    assert x.is_contiguous()


def test_colours_come_in_the_order_red_green_blue():
    assert one_pixel(Image.new("RGB", (9, 9), (250, 100, 10))) == [250, 100, 10]
    assert one_pixel(Image.new("CMYK", (9, 9), (0, 255, 255, 0))) == [255, 0, 0]


def test_rows_are_rows_and_columns_columns():
    image = Image.new("L", (40, 20), 0)
    image.paste(200, (0, 0, 40, 10))  # the upper half
    x = grey(image)[0]
    assert x[:3].min() > 190
    assert x[5:].max() < 10


def test_invert_makes_ink_one():
    paper = Image.new("1", (105, 105), 1)
    assert decode(paper, size=28, channels=1, invert=True).max() == 0
    assert decode(paper, size=28, channels=1, invert=False).min() == 255


def test_resizing_averages_instead_of_picking():
    stripes = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    x = grey(stripes).float()
    assert 120 < x.mean() < 136
    assert x.std() < 10


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (9, 9), (0, 0, 0, 0)),
        Image.new("LA", (9, 9), (0, 0)),
        Image.open(io.BytesIO(png(Image.new("RGB", (9, 9), "red").quantize(4), transparency=0))),
        Image.open(io.BytesIO(png(Image.new("L", (9, 9), 0), transparency=0))),
        Image.open(io.BytesIO(png(Image.new("RGB", (9, 9), 0), transparency=(0, 0, 0)))),
    ],
    ids=["RGBA", "LA", "P", "L", "RGB"],
)
def test_transparent_parts_are_white(image):
    assert one_pixel(image) == [255, 255, 255]


def test_half_transparent_black_is_grey():
    assert one_pixel(Image.new("RGBA", (9, 9), (0, 0, 0, 128)), 1) == [127]


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("u2", 65535, 255),
        ("u2", 32896, 128),
        ("i4", 65535, 255),
        ("f4", 1.0, 255),
        ("f4", 51.0, 51),
    ],
)
def test_deep_images_keep_their_brightness(dtype, value, expected):
    assert one_pixel(Image.fromarray(np.full((9, 9), value, dtype)), 1) == [expected]


def test_sixteen_bit_png_file():
    assert grey(png(Image.fromarray(np.full((9, 9), 32896, np.uint16)))).unique().tolist() == [128]


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 40), "black")
    image.paste(
        "white", (0, 0, 40, 20)
    )  # white above; turned by 90 degrees clockwise it is on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    x = grey(png(image, format="JPEG", exif=exif, quality=95))[0].float()
    assert x[:, 5:].mean() > 240
    assert x[:, :3].mean() < 15


def test_damaged_exif_is_no_reason_to_refuse_a_picture():
    entries = struct.pack(">HHI4s", 0x0153, 2, 4, b"abc") + struct.pack(
        ">HHIHH", 0x0112, 3, 1, 6, 0
    )  # a text where a number belongs
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    with Image.open(io.BytesIO(png(Image.new("L", (9, 9), 7), format="JPEG", exif=exif))) as image:
        with pytest.raises(Exception, match="integer"):
            ImageOps.exif_transpose(image)
        assert grey(image).unique().tolist() == [7]


def test_large_jpeg_is_decoded_as_the_small_one():
    noise = Image.effect_noise((512, 384), 100)
    from_file = grey(png(noise, format="JPEG", quality=100), size=32).int()
    assert (from_file - grey(noise, size=32).int()).abs().max() <= 4


def test_first_frame_of_an_animation():
    frames = [Image.new("L", (9, 9), v) for v in (10, 200)]
    assert grey(
        png(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    ).unique().tolist() == [10]


def test_a_path_and_its_bytes_are_the_same(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((50, 40), 80).save(path)
    assert torch.equal(grey(path), grey(path.read_bytes()))
    assert torch.equal(grey(path), grey(Image.open(path)))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


NOISE = png(Image.effect_noise((64, 64), 80))
BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", b"")
)
BIG = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 10000, 10000, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", b"")
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (NOISE[:20], "cannot be read"),
        (NOISE[: len(NOISE) // 2], "cannot be read"),
        (NOISE.replace(NOISE[200:220], bytes(20)), "cannot be read"),
        (png(Image.effect_noise((64, 64), 80), format="JPEG")[:900], "cannot be read"),
        (BOMB, "too many pixels"),
        (BIG, "too many pixels"),
    ],
    ids=[
        "empty",
        "text",
        "postscript",
        "stub",
        "truncated",
        "garbled",
        "truncated jpeg",
        "bomb",
        "big",
    ],
)
def test_what_is_no_image_is_named(data, message):
    with pytest.raises(DataError, match=f"cat.png.*{message}") as caught:
        grey(data, name="cat.png")
    assert caught.value.hint


def test_missing_file_and_directory_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*gone\.png"):
        grey(tmp_path / "gone.png")
    with pytest.raises(DataError, match=tmp_path.name):
        grey(tmp_path)


def test_images_are_known_by_suffix_in_either_case():
    assert is_image("a.PNG")
    assert is_image("b.c.jpeg")
    assert not any(map(is_image, ["png", "a.txt", "Thumbs.db", "a.png.txt"]))
