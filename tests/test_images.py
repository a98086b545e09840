"""Images of every mode and kind of damage."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, features

from metazoo import DataError, images
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


@pytest.mark.parametrize(("bits", "kind"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (16, 2)])
def test_the_transparent_colour_of_a_png_is_white_at_every_depth(bits, kind):
    channels = 3 if kind == 2 else 1
    ink, ground = 0, 2 ** (bits - 1) - (bits == 1)  # stored: a dark stroke on a transparent grey
    if bits == 1:
        ink = 1 - ground
    values = np.full((8, 8), ground)
    values[:, :4] = ink
    if bits < 8:
        rows = np.packbits(
            np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(8, -1),
            axis=-1,
        )
    else:
        rows = np.repeat(values[..., None], channels, -1).astype(f">u{bits // 8}").reshape(8, -1)
    file = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, kind, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", ground) * channels)
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + chunk(b"IEND", b"")
    )
    x = decode(file, size=8, channels=1, invert=False)[0]
    assert x[:, 4:].unique().tolist() == [255]
    if bits > 1:
        assert x[:, :4].unique().tolist() == [0]


def test_half_transparent_black_is_grey():
    assert one_pixel(Image.new("RGBA", (9, 9), (0, 0, 0, 128)), 1) == [127]


RAMP = np.tile(np.arange(8) * 36, (8, 1))  # 0 to 252
GREYS = [0, 36, 72, 108, 144, 180, 216, 252]


def greys(source):
    return grey(source)[0, 0].tolist()


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("u2", RAMP * 257, GREYS),
        ("u2", RAMP, GREYS),
        ("i4", RAMP, GREYS),
        ("i4", RAMP * 257, GREYS),
        ("f4", RAMP, GREYS),
        ("f4", RAMP / 255, GREYS),
        ("f4", RAMP / 255 + 0.02, [5, 41, 77, 113, 149, 185, 221, 255]),
        ("f4", RAMP * 257, GREYS),
        ("u2", RAMP * 64, [0, 36, 72, 108, 143, 179, 215, 251]),  # 14 bits
        ("u2", RAMP * 16, [0, 36, 72, 108, 143, 179, 215, 251]),  # 12 bits
        ("u2", RAMP * 4, [0, 36, 72, 108, 144, 179, 215, 251]),  # 10 bits
        ("i4", RAMP > 100, [0, 0, 0, 255, 255, 255, 255, 255]),
        ("i4", RAMP * 10**6, [0, 36, 73, 109, 146, 182, 219, 255]),
        ("f4", RAMP / 126 - 1, [0, 36, 73, 109, 146, 182, 219, 255]),
        ("i4", RAMP * 0, [0] * 8),
        ("i4", RAMP * 0 + 70_000, [255] * 8),
    ],
)
def test_deep_images_keep_their_brightness(dtype, values, expected):
    assert greys(Image.fromarray(values.astype(dtype))) == expected


def test_pixels_that_are_not_numbers_are_black_and_do_not_darken_the_others():
    values = (RAMP / 255).astype("f4")
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    x = grey(Image.fromarray(values))[0]
    assert x[0].tolist() == [0, 255, 0, *GREYS[3:]]
    assert x[1].tolist() == GREYS
    with pytest.raises(DataError, match="the image has no pixel with a number"):
        grey(Image.fromarray(values * np.nan))


def tiff(values, **tags):
    """Return a TIFF file with other values of short tags than Pillow writes."""
    data = png(Image.fromarray(values), format="TIFF")
    for tag, (old, new) in tags.items():
        entry = struct.pack("<HHI", int(tag[1:]), 3, 1)
        assert entry + struct.pack("<H", old) in data
        data = data.replace(entry + struct.pack("<H", old), entry + struct.pack("<H", new))
    return data


def test_a_tiff_may_store_white_as_zero():
    assert greys(tiff((RAMP * 257).astype("u2"), _262=(1, 0))) == [255 - grey for grey in GREYS]


def test_large_unsigned_integers_are_not_negative():
    values = (RAMP.astype("u4") * 2**24).view("i4")
    assert greys(tiff(values, _339=(2, 1))) == [0, 36, 73, 109, 146, 182, 219, 255]


def test_a_portable_graymap_says_what_is_white():
    data = b"P5 8 8 65535\n" + (RAMP * 16).astype(">u2").tobytes()
    assert greys(data) == [0, 2, 4, 7, 9, 11, 13, 16]


def deep_colours(values, kind):
    """Return a PNG file with 16 bits for each colour: 2 for RGB, 4 for grey and alpha, 6 for RGBA."""
    colours = {2: [values] * 3, 4: [values, values * 0 + 65535]}
    colours[6] = [*colours[2], values * 0 + 65535]
    rows = np.stack(colours[kind], -1).astype(">u2")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *values.shape[::-1], 16, kind, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_colours_with_16_bits_are_read_or_refused(kind):
    assert greys(deep_colours(RAMP * 257, kind)) == GREYS
    with pytest.raises(DataError, match="uses only the lowest 12") as caught:
        grey(deep_colours(RAMP * 16, kind))
    assert "8 bits" in caught.value.hint


def test_lab_colours():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    red = Image.new("RGB", (9, 9), (200, 40, 30))
    image = ImageCms.profileToProfile(red, srgb, lab, outputMode="LAB")
    for channels, expected in ((3, [200, 40, 30]), (1, [87])):
        found = torch.tensor(one_pixel(png(image, format="TIFF"), channels))
        assert (found - torch.tensor(expected)).abs().max() <= 2


def test_sixteen_bit_png_file():
    assert grey(png(Image.fromarray(np.full((9, 9), 32896, np.uint16)))).unique().tolist() == [128]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind):
    image = Image.new("RGB", (40, 40), "black")
    image.paste(
        "white", (0, 0, 40, 20)
    )  # white above; turned by 90 degrees clockwise it is on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    x = grey(png(image, format=kind, exif=exif))[0].float()
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


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_first_frame_or_page(kind):
    frames = [Image.new("RGB", (9, 9), (v, v, v)) for v in (10, 200)]
    data = png(frames[0], format=kind, save_all=True, append_images=frames[1:])
    assert grey(data).unique().tolist() == [10]


def test_a_phone_stores_a_second_picture_behind_the_first():
    exif = Image.Exif()
    exif[0x0112] = 6
    first, second = Image.linear_gradient("L").convert("RGB"), Image.new("RGB", (256, 256), "red")
    data = png(first, format="MPO", save_all=True, append_images=[second], exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    assert torch.equal(grey(data), grey(png(first, format="JPEG", exif=exif)))


def test_a_jpeg_in_cmyk_has_the_colours_that_are_printed():
    photo = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * i) for i in range(3)])
    data = png(photo.convert("CMYK"), format="JPEG", quality=100)
    found, expected = (decode(x, size=8, channels=3, invert=False).int() for x in (data, photo))
    assert (found - expected).abs().max() <= 8


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


def test_what_the_system_refuses_is_not_called_damaged(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*: File name too long") as caught:
        grey(tmp_path / ("x" * 300 + ".png"))
    assert "check the path" in caught.value.hint


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is not a file"):
        grey(tmp_path / "pipe.png")


MEMORY = """
import re, sys
from pathlib import Path
from PIL import Image
from metazoo.images import decode

def memory(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

decode(Image.new("L", (9, 9)), size=8, channels=3, invert=False)
before = memory("VmRSS")
for path in sys.argv[1:]:
    decode(Path(path), size=84, channels=3, invert=False)
    print((memory("VmHWM") - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_image_takes_its_pixels_and_a_little_more(tmp_path):
    side, pixels = 3500, {"L": 1, "P": 1, "I;16": 2, "LA": 4, "F": 4}  # bytes, in growing order
    paths = [tmp_path / f"{i}.tif" for i in range(len(pixels))]
    for path, mode in zip(paths, pixels):
        Image.new(mode, (side, side)).save(path)
    command = [sys.executable, "-c", MEMORY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for taken, pixel in zip(map(int, done.stdout.split()), pixels.values(), strict=True):
        assert taken < side**2 * pixel / 2**20 + 40  # MiB


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "I;16"])
def test_bands_do_not_change_a_pixel(monkeypatch, mode, size):
    noise = torch.randint(256, (301, 500, 4), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.to(torch.uint8).numpy())
    if mode == "I;16":
        image = Image.fromarray((noise[..., 0] * 257).numpy().astype("u2"))
    elif mode != "RGBA":
        image = image.convert("RGB").convert(mode)
    whole = decode(image, size=size, channels=3, invert=False)
    monkeypatch.setattr(images, "_BAND", 2000)
    assert torch.equal(decode(image, size=size, channels=3, invert=False), whole)


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_a_crop_is_the_central_square(crop):
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (10, 0, 30, 20))  # the central square
    wide.paste("white", (15, 5, 25, 15))  # the central half of it
    pixels = decode(wide, size=8, channels=3, invert=False, crop=crop)
    assert pixels[:, 4, 4].tolist() == [255, 255, 255]
    # The filter blurs edges a little.
    assert (pixels[0, :, 0] < 50).all() if crop == 1 else (pixels[0, :, 0] > 200).all()
    assert (pixels[2] > 200).all()  # no red


def test_without_a_crop_the_whole_image_is_stretched():
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (10, 0, 30, 20))
    pixels = decode(wide, size=8, channels=3, invert=False)
    assert pixels[:, 4, 0].tolist() == [255, 0, 0]
    assert pixels[:, 4, 4].tolist() == [0, 0, 255]


def test_images_are_known_by_suffix_in_either_case():
    assert is_image("a.PNG")
    assert is_image("b.c.jpeg")
    assert all(map(is_image, ["a.jfif", "a.jpe", "a.tga", "a.qoi", "a.webp"]))
    assert is_image("a.jp2") or not features.check("jpg_2000")
    assert is_image("a.avif") or not features.check("avif")
    assert not any(map(is_image, ["png", "a.txt", "Thumbs.db", "a.png.txt", "a.eps", "a.wmf"]))
