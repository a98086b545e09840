"""Edits of bytes, JSON and of the formats that metazoo reads.

They keep a file valid often enough that what lies inside is reached: lengths, offsets and
checksums are made to fit again, or are the one thing that lies.
"""

from __future__ import annotations

import copy
import json
import math
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

Edit = Callable[[random.Random, Any], Any]

SIZES = (0, 1, 2, 3, 7, 8, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 0.5, -0.0, 1e-320, 1e9, 10**9, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 1e308),
    *(-(10**9), -(2**63), -1e308, 10**30, 10**400, math.nan, math.inf, -math.inf),
)
TEXTS = (
    "",
    "x",
    " ",
    "..",
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "nan",
    "\0",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "\r\nerror: forged",
    "\u202e",
    "\ud800",
    "é" * 300,
    "x" * 100_000,
    "--help",
    "1",
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"x": 1}, [1, 2], "null", [None] * 9)


def some_bytes(rng: random.Random, data: bytes) -> bytes:
    """Damage bytes at one place."""
    data, at = bytearray(data), rng.randrange(len(data) + 1)
    length = rng.choice((1, 1, 2, 4, 8, 64, 1000))
    kind = rng.choice(("flip", "set", "cut", "end", "insert", "zero", "repeat", "swap", "number"))
    if kind == "flip":
        return one_bit(rng, bytes(data))
    if kind == "set":
        data[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == "cut":
        del data[at : at + length]
    elif kind == "end":
        del data[at:]
    elif kind == "insert":
        data[at:at] = rng.randbytes(length)
    elif kind == "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "repeat":
        data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
    elif kind == "swap":
        to = rng.randrange(len(data) + 1)
        data[at : at + length], data[to : to + length] = (
            data[to : to + length],
            data[at : at + length],
        )
    else:
        packed = struct.pack(rng.choice(("<I", ">I")), rng.choice(SIZES))
        data[at : at + 4] = packed[: len(data[at : at + 4])]
    return bytes(data)


def one_bit(rng: random.Random, data: bytes) -> bytes:
    """Flip one bit, as a bad disk does."""
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def json_value(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with one place in it changed: its type, its size, or whether it is there."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(VALUES)
    container, key = rng.choice(places)
    kind = rng.choice(("odd", "odd", "number", "text", "type", "gone", "renamed", "scaled", "deep"))
    if kind == "gone":
        del container[key]
    elif kind == "renamed" and isinstance(container, dict):
        container[rng.choice(TEXTS)] = container.pop(key)
    elif kind == "scaled" and isinstance(container[key], (int, float)):
        container[key] *= rng.choice((-1, 10, 1000, 10**6, 0.1))
    elif kind == "deep":
        for _ in range(rng.choice((3, 900))):
            container[key] = [container[key]]
    elif kind == "type":
        container[key] = _other_type(container[key])
    else:
        odd = {"odd": NUMBERS + TEXTS + VALUES, "number": NUMBERS, "text": TEXTS}
        container[key] = rng.choice(odd.get(kind, VALUES))
    return value


def _places(value: Any) -> Any:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _other_type(value: Any) -> Any:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return list(value.items())
    return str(value) if not isinstance(value, list) else dict(enumerate(value))


def json_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change a JSON file: mostly what it says, sometimes its text."""
    kind = rng.randrange(10)
    if kind == 0:
        return some_bytes(rng, data)
    if kind == 1:
        deep = rng.choice((b"[" * 200_000, b'{"a":' * 5000, b"[" * 500 + b"]" * 500))
        return rng.choice((deep, data.replace(b": ", b": " + deep, 1)))
    if kind == 2:
        return rng.choice((b"", b"null", b"[]", b"1" * 5000, b"\xff\xfe{}", b"\xef\xbb\xbf" + data))
    return dumped(json_value(rng, json.loads(data)))


def dumped(value: Any) -> bytes:
    """Return JSON text; 10^400 is written out."""
    return json.dumps(value, indent=1).encode("utf-8", "surrogatepass")


# safetensors: a length of 8 bytes, a header in JSON, the values of the tensors.

FLOATS = ("F64", "F32", "F16", "BF16")
NOT_NUMBERS = (math.nan, math.inf, -math.inf)
OTHERS = ("I64", "I32", "I16", "I8", "U8", "BOOL", "C64", "F8_E4M3", "X")


def split_tensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the body of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_tensors(header: dict[str, Any], body: bytes) -> bytes:
    text = dumped(header)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def unsealed(edit: Callable[[random.Random, bytes], bytes]) -> Callable[..., bytes]:
    """Return the edit of a safetensors file without metazoo's sha256, as in files of old versions."""

    def changed(rng: random.Random, data: bytes) -> bytes:
        header, body = split_tensors(data)
        values = json.loads(header["__metadata__"]["metazoo"])
        written = values.get("sha256", "")
        if written and written != sha256(data.replace(written.encode(), b"0" * 64, 1)).hexdigest():
            raise ValueError("only the sha256 tells of the edit before")
        header["__metadata__"]["metazoo"] = without_sha256(values).decode()
        return edit(rng, join_tensors(header, body))

    return changed


def without_sha256(values: dict[str, Any]) -> bytes:
    """Return what metazoo writes into the header of a model's file, without its sha256."""
    return dumped({key: value for key, value in values.items() if key != "sha256"})


def tensor_dtype(
    rng: random.Random, data: bytes, dtypes: Sequence[str] = (*FLOATS, *OTHERS)
) -> bytes:
    """Give a tensor another type; its bytes are made as many as that needs."""
    header, body = split_tensors(data)
    name = rng.choice([key for key in header if key != "__metadata__"])
    header[name]["dtype"] = dtype = rng.choice(dtypes)
    width = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "I32": 4, "X": 4}.get(dtype, 2)
    width = 1 if dtype in ("I8", "U8", "BOOL", "F8_E4M3") else width
    return _resize(header, body, name, width * math.prod(header[name]["shape"]))


def tensor_shape(rng: random.Random, data: bytes) -> bytes:
    """Change a tensor's shape, with bytes to match if they are not too many."""
    header, body = split_tensors(data)
    name = rng.choice([key for key in header if key != "__metadata__"])
    shape = header[name]["shape"]
    kind = rng.choice(("turned", "flat", "more", "huge", "none", "negative"))
    changed = {
        "turned": shape[::-1],
        "flat": [math.prod(shape)],
        "more": [*shape, rng.choice((1, 2))],
        "huge": [*shape[:-1], rng.choice((2**20, 2**40, 2**62))],
        "none": [0, *shape[1:]],
        "negative": [-1, *shape[1:]],
    }[kind]
    header[name]["shape"] = changed
    size = 4 * math.prod(changed)
    return _resize(header, body, name, size) if 0 <= size < 2**22 else join_tensors(header, body)


def _resize(header: dict[str, Any], body: bytes, name: str, size: int) -> bytes:
    """Lay out all tensors anew, with `size` bytes for one of them."""
    parts, at = [], 0
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        part = body[start:end]
        if key == name:
            part = (part * (size // max(1, len(part)) + 1))[:size]
        entry["data_offsets"] = [at, at + len(part)]
        at += len(part)
        parts.append(part)
    return join_tensors(header, b"".join(parts))


def tensor_offsets(rng: random.Random, data: bytes) -> bytes:
    """Exchange the places of two tensors, or let one point elsewhere."""
    header, body = split_tensors(data)
    names = [key for key in header if key != "__metadata__"]
    first, other = rng.choice(names), rng.choice(names)
    kind = rng.choice(("exchanged", "moved", "same"))
    if kind == "exchanged":
        header[first]["data_offsets"], header[other]["data_offsets"] = (
            header[other]["data_offsets"],
            header[first]["data_offsets"],
        )
    elif kind == "same":
        header[first]["data_offsets"] = header[other]["data_offsets"]
    else:
        shift = rng.choice((-1, 1, 4, len(body), 2**40))
        header[first]["data_offsets"] = [n + shift for n in header[first]["data_offsets"]]
    return join_tensors(header, body)


def tensor_names(rng: random.Random, data: bytes) -> bytes:
    """Rename a tensor, drop it, or add another."""
    header, body = split_tensors(data)
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.choice(("renamed", "gone", "added"))
    if kind == "added":
        header[rng.choice(TEXTS)] = {
            "dtype": "F32",
            "shape": [0],
            "data_offsets": [len(body), len(body)],
        }
        return join_tensors(header, body)
    entry = header.pop(name)
    if kind == "renamed":
        header[rng.choice((*TEXTS, name + "x", "optimizer.x", "model"))] = entry
    return join_tensors(header, body)


def tensor_values(rng: random.Random, data: bytes) -> bytes:
    """Put NaN, infinity, an enormous number or another one into a tensor, or flip a bit of its values."""
    if rng.random() < 0.5:
        return join_bytes(data, one_bit(rng, split_tensors(data)[1]))
    return _put(rng, data, (*NOT_NUMBERS, 3e38, -3e38, 1.5))


def tensor_not_numbers(rng: random.Random, data: bytes) -> bytes:
    """Put NaN or infinity into a tensor."""
    return _put(rng, data, NOT_NUMBERS)


def _put(rng: random.Random, data: bytes, values: Sequence[float]) -> bytes:
    """Replace a number of a float32 tensor."""
    header, body = split_tensors(data)
    floats = [entry for entry in header.values() if entry.get("dtype") == "F32"]
    start, end = rng.choice([e["data_offsets"] for e in floats if math.prod(e["shape"])])
    at = start + 4 * rng.randrange((end - start) // 4)
    return join_bytes(data, body[:at] + struct.pack("<f", rng.choice(values)) + body[at + 4 :])


def join_bytes(data: bytes, body: bytes) -> bytes:
    """Return a safetensors file with its header as it is and another body."""
    return data[: 8 + int.from_bytes(data[:8], "little")] + body


def tensor_header(rng: random.Random, data: bytes) -> bytes:
    """Change the header as JSON, or its length."""
    header, body = split_tensors(data)
    if rng.random() < 0.5:
        return join_tensors(json_value(rng, header), body)
    return struct.pack("<Q", rng.choice((*SIZES, 2**40, 2**63, 2**64 - 1))) + data[8:]


# PNG: chunks of a length, a type, data and a CRC.

PNG_START = b"\x89PNG\r\n\x1a\n"


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG, as types and data."""
    found, at = [], len(PNG_START)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(parts: list[tuple[bytes, bytes]]) -> bytes:
    """Return the PNG of some chunks, with the CRC of each."""
    return PNG_START + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def png_chunks(rng: random.Random, data: bytes) -> bytes:
    """Change a chunk of a PNG, or their order; the checksums fit."""
    parts = chunks(data)
    at = rng.randrange(len(parts))
    kind = rng.choice(("data", "gone", "twice", "order", "header", "new", "split"))
    if kind == "data":
        parts[at] = parts[at][0], some_bytes(rng, parts[at][1])
    elif kind == "gone":
        del parts[at]
    elif kind == "twice":
        parts.insert(at, parts[at])
    elif kind == "order":
        rng.shuffle(parts)
    elif kind == "header":
        width, height = (rng.choice((0, 1, 16, 17, 60_000, 2**31 - 1)) for _ in range(2))
        depth, colour = rng.choice((1, 2, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1))
        parts[0] = b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    elif kind == "new":
        bomb = zlib.compress(bytes(2**24))
        name = rng.choice((b"eXIf", b"gAMA", b"tRNS", b"PLTE", b"pHYs", b"cHRM", b"acTL"))
        extra = [
            (name, rng.randbytes(rng.choice((0, 1, 4, 6, 300)))),
            (b"zTXt", b"x\0\0" + bomb),
            (b"iCCP", b"x\0\0" + bomb),
        ]
        parts.insert(1, rng.choice(extra))
    else:
        body = b"".join(part for name, part in parts if name == b"IDAT")
        cut = rng.randrange(len(body))
        ends = [
            (b"IHDR", parts[0][1]),
            (b"IDAT", body[:cut]),
            (b"IDAT", body[cut:]),
            (b"IEND", b""),
        ]
        parts = ends[: rng.choice((3, 4))]
    return png(parts)


# TIFF: directories of 12-byte entries (tag, type, count, value).


def tiff_entry(rng: random.Random, data: bytes) -> bytes:
    """Change a field of an entry of the first directory of a TIFF."""
    order = "<" if data[:2] == b"II" else ">"
    directory = struct.unpack(order + "I", data[4:8])[0]
    entries = struct.unpack(order + "H", data[directory : directory + 2])[0]
    at = directory + 2 + 12 * rng.randrange(entries)
    field, code = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I")))
    number = rng.choice(
        SIZES if code == "I" else (0, 1, 2, 3, 5, 12, 256, 258, 259, 262, 339, 65535)
    )
    packed = struct.pack(order + code, number)
    return data[: at + field] + packed + data[at + field + len(packed) :]


# IDX: zero, zero, type, dimensions, their sizes, the bytes.


def idx(rng: random.Random, data: bytes) -> bytes:
    """Change the magic number or a size of an IDX file, or its bytes."""
    dimensions = data[3]
    kind = rng.choice(("magic", "size", "both", "bytes", "empty"))
    if kind == "magic":
        return bytes([*data[:2], rng.choice((0, 8, 9, 13, 14)), rng.randrange(256)]) + data[4:]
    if kind == "bytes":
        return some_bytes(rng, data)
    sizes = list(struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions]))
    if kind == "empty":  # enormous sizes, whose product is 0
        sizes = [rng.choice((0, 2**31, 2**32 - 1)) for _ in sizes]
        return data[:4] + struct.pack(f">{dimensions}I", *sizes)
    for at in range(dimensions) if kind == "both" else [rng.randrange(dimensions)]:
        sizes[at] = rng.choice(SIZES)
    return data[:4] + struct.pack(f">{dimensions}I", *sizes) + data[4 + 4 * dimensions :]


# zip: local files, and at the end a directory of them.

LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
# Fields of a directory's entry: offset, width, and the offset in the local header or None.
ZIP_FIELDS: dict[str, tuple[int, str, int | None]] = {
    "flags": (8, "H", 6),
    "method": (10, "H", 8),
    "crc": (16, "I", 14),
    "compressed size": (20, "I", 18),
    "size": (24, "I", 22),
    "length of the name": (28, "H", 26),
    "length of the extra field": (30, "H", 28),
    "length of the comment": (32, "H", None),
    "attributes": (38, "I", None),
    "place": (42, "I", None),
}


def zip_field(rng: random.Random, data: bytes, *, both: bool) -> bytes:
    """Change a field of a member of a zip, in its directory, and perhaps in the local header too."""
    starts = _all(data, CENTRAL)
    at = rng.choice(starts)
    offset, code, local = ZIP_FIELDS[rng.choice(list(ZIP_FIELDS))]
    values = (0, 1, 2, 8, 9, 12, 14, 0x800, 65535) if code == "H" else (*SIZES, 0xA1FF << 16)
    packed = struct.pack("<" + code, rng.choice(values))
    place = struct.unpack("<I", data[at + 42 : at + 46])[0]
    data = data[: at + offset] + packed + data[at + offset + len(packed) :]
    if both and local is not None:
        data = data[: place + local] + packed + data[place + local + len(packed) :]
    return data


def zip_end(rng: random.Random, data: bytes) -> bytes:
    """Change a field of the record at the end of a zip: counts, size, place, length of the comment."""
    at = data.rfind(b"PK\x05\x06") + rng.choice((4, 6, 8, 10, 12, 16, 20))
    packed = struct.pack("<H", rng.choice((0, 1, 2, 72, 65535)))
    return data[:at] + packed + data[at + 2 :]


def zip_swallowed(rng: random.Random, data: bytes) -> bytes:
    """Let the comment of a member, in the directory of a zip, take the place of members after it."""
    starts = [*_all(data, CENTRAL), data.rfind(b"PK\x05\x06")]
    at = rng.randrange(len(starts) - 2)
    length = rng.choice(starts[at + 2 :]) - starts[at + 1]
    place = starts[at] + ZIP_FIELDS["length of the comment"][0]
    return data[:place] + struct.pack("<H", length) + data[place + 2 :]


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found
