"""Trees and archives, honest and hostile."""

import os
import socket
import stat
import struct
import tracemalloc
import zipfile

import pytest

from metazoo import DataError
from metazoo.io import archives
from metazoo.io.archives import digest, open_tree

FILES = {("a", "x.txt"): b"ax", ("a", "y.txt"): b"ay" * 500, ("b", "c", "z.txt"): b"bcz"}


@pytest.fixture(params=["directory", "zip"])
def path(request, tmp_path):
    """The same files as a directory and as a zip archive, among things that are to be left out."""
    noise = {(".hidden",): b"", ("a", ".DS_Store"): b"", ("__MACOSX", "a", "._x.txt"): b""}
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("empty/", b"")
            for parts, data in (FILES | noise).items():
                archive.writestr("/".join(parts), data)
        return tmp_path / "t.zip"
    (tmp_path / "t" / "empty").mkdir(parents=True)
    for parts, data in (FILES | noise).items():
        file = (tmp_path / "t").joinpath(*parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path / "t"


def pack(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def pack_as(path, *members):
    """Write an archive with names that ZipInfo's constructor would tidy up."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            archive.writestr(info, data)
    return path


def read_all(path):
    with open_tree(path) as tree:
        return {parts: tree.read(parts) for parts in tree.files}


def refused(path, match):
    with pytest.raises(DataError, match=match) as caught:
        read_all(path)
    assert path.name in caught.value.message
    assert caught.value.hint


def test_a_directory_and_a_zip_read_the_same(path):
    with open_tree(path) as tree:
        assert tree.files == sorted(FILES)
        assert tree.folders == {("a",), ("b",), ("b", "c"), ("empty",)}
        assert {parts: tree.read(parts) for parts in tree.files} == FILES
        assert "z.txt" in tree.name(("b", "c", "z.txt"))
        assert str(path) in tree.name(("b", "c", "z.txt"))


def test_reading_an_archive_leaves_nothing_on_disk(tmp_path):
    path = pack(tmp_path / "t.zip", ("a/b.txt", b"data"))
    with open_tree(path) as tree:
        tree.read(("a", "b.txt"))
    assert os.listdir(tmp_path) == ["t.zip"]


def test_digest_changes_with_the_data(tmp_path):
    one, two = pack(tmp_path / "1.zip", ("a", b"1")), pack(tmp_path / "2.zip", ("a", b"2"))
    assert digest(one) != digest(two)
    folder = tmp_path / "f"
    folder.mkdir()
    seen = {digest(folder)}
    (folder / "a").write_bytes(b"1")
    seen.add(digest(folder))
    (folder / "a").write_bytes(b"12")
    seen.add(digest(folder))
    (folder / "a").rename(folder / "b")
    seen.add(digest(folder))
    assert len(seen) == 4
    assert digest(folder) in seen


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "a/../../evil.png",
        "/etc/evil.png",
        "C:/evil.png",
        "C:evil.png",
        "a\\..\\evil.png",
        "\\evil.png",
    ],
)
def test_paths_that_leave_the_archive_are_refused(tmp_path, name):
    path = pack_as(tmp_path / "t.zip", ("fine.png", b"1"), (name, b"2"))
    refused(path, "unsafe path")
    assert os.listdir(tmp_path) == ["t.zip"]


@pytest.mark.parametrize("name", ["a\\b.png", "./a/b.png", "a//b.png", "a/./b.png", ".\\a\\b.png"])
def test_other_spellings_of_a_path_are_understood(tmp_path, name):
    folder = name.removesuffix("b.png")
    path = pack_as(tmp_path / "t.zip", ("./", b""), (folder, b""), (name, b"data"))
    with open_tree(path) as tree:
        assert tree.folders == {("a",)}
        assert {parts: tree.read(parts) for parts in tree.files} == {("a", "b.png"): b"data"}
    refused(pack_as(tmp_path / "u.zip", (name, b"1"), ("a/b.png", b"2")), "is there twice")


def test_names_in_other_encodings(tmp_path):
    named = {"cp437": b"caf\x82", "utf-8": "caf\u00e9".encode()}
    for encoding, raw in named.items():  # neither says how it is encoded
        path = pack(tmp_path / f"{encoding}.zip", ("abcd", b"1"), ("x" * len(raw), b"2"))
        path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))
        assert read_all(path) == {("abcd",): b"1", ("caf\u00e9",): b"2"}
    path = pack(tmp_path / "wrong.zip", ("caf\u00e9", b"1"))  # says that it is UTF-8
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    refused(path, r"bytes that are not UTF-8: b'caf\\xff\\xff'")


def test_a_member_without_a_name(tmp_path):
    refused(pack_as(tmp_path / "t.zip", ("", b"1")), "member '' has no name")


@pytest.mark.parametrize("kind", ["zip", "directory"])
def test_folders_inside_each_other_without_end(tmp_path, kind):
    if kind == "zip":
        path = pack(tmp_path / "t.zip", ("d/" * 30_000 + "x.png", b"1"))
    else:
        path = tmp_path / "t"
        path.joinpath(*["d"] * 400).mkdir(parents=True)
    refused(path, "folders more than 100 deep")


def test_links_in_an_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(pack(tmp_path / "t.zip", (link, "/etc/passwd")), "link.png' is a link")


def test_a_member_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = pack(tmp_path / "t.zip", ("a.png", b"1"), ("a.png", b"2"))
    refused(path, "twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_bounded_are_refused(tmp_path, method):
    refused(pack(tmp_path / "t.zip", ("a.png", b"1" * 100), method=method), r"a\.png'.*deflate")


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    assert open_tree(pack(tmp_path / "t.zip", *((f"{i}", b"") for i in range(3)))).files
    refused(pack(tmp_path / "u.zip", *((f"{i}", b"") for i in range(4))), "4 members")


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_TOTAL", 2**20)
    refused(
        pack(tmp_path / "t.zip", *((f"{i}.png", bytes(2**19)) for i in range(3))),
        "unpacks to 1572864 bytes",
    )


def test_a_member_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    refused(pack(tmp_path / "t.zip", ("a.png", bytes(1001))), r"a\.png' exceeds the limit of 1000")


def test_a_member_that_is_too_large_is_not_unpacked_first(tmp_path, monkeypatch):
    path = pack(tmp_path / "t.zip", ("a.png", bytes(2**25)))
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    tracemalloc.start()
    try:
        refused(path, "exceeds")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("declared", [10, 2**20])
def test_a_declared_size_that_lies(tmp_path, monkeypatch, declared):
    path = pack(tmp_path / "t.zip", ("a.png", bytes(5000)))
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", declared)
    path.write_bytes(data)
    monkeypatch.setattr(archives, "MAX_MEMBER", 1000)
    refused(path, r"a\.png' (is damaged|exceeds)")


def test_what_was_read_counts_and_not_what_was_declared(tmp_path, monkeypatch):
    path = pack(tmp_path / "t.zip", ("a.png", bytes(600)), ("b.png", bytes(600)))
    with open_tree(path) as tree:
        monkeypatch.setattr(archives, "MAX_TOTAL", 1000)
        tree.read(("a.png",))
        with pytest.raises(DataError, match=r"b\.png' exceeds the limit of 1000"):
            tree.read(("b.png",))


def test_damage_names_the_member(tmp_path):
    path = pack(
        tmp_path / "t.zip",
        ("good.png", b"g" * 99),
        ("bad.png", b"payload"),
        method=zipfile.ZIP_STORED,
    )
    path.write_bytes(path.read_bytes().replace(b"payload", b"pazload"))
    refused(path, r"bad\.png' is damaged: Bad CRC-32")


def test_a_garbled_deflate_stream_names_the_member(tmp_path):
    path = pack(tmp_path / "t.zip", ("bad.png", os.urandom(50) * 20))
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xff" * 30
    path.write_bytes(data)
    refused(path, r"bad\.png' is damaged")


def test_no_single_wrong_bit_changes_what_is_read(tmp_path):
    path = pack(tmp_path / "t.zip", ("cat/1.png", b"1" * 20), ("dog/2.png", b"22"))
    whole, data = read_all(path), path.read_bytes()
    damaged, messages = tmp_path / "damaged.zip", []
    for place in range(data.index(b"PK\1\2") * 8, len(data) * 8):
        wrong = bytearray(data)
        wrong[place // 8] ^= 1 << place % 8
        damaged.write_bytes(wrong)
        try:
            assert read_all(damaged) == whole, place
        except DataError as error:
            messages.append(error.message)
    assert len(messages) > 500
    assert all("damaged.zip" in message for message in messages)


def test_a_member_that_the_list_has_lost(tmp_path):
    path = pack(tmp_path / "t.zip", ("1.png", b"1"), ("2.png", b"2"), ("3.png", b"3"))
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[second - 5 - 46 + 32] += 46 + 5  # the first member's comment swallows the second
    path.write_bytes(data)
    assert zipfile.ZipFile(path).namelist() == ["1.png", "3.png"]
    refused(path, "is damaged: it lists 2 of 3 members")


@pytest.mark.parametrize("counted", [2, 3])
def test_large_archives_count_their_members_in_another_record(tmp_path, counted):
    path = pack(tmp_path / "t.zip", ("1.png", b"1"), ("2.png", b"2"))
    data = path.read_bytes()
    end = data.index(b"PK\5\6")
    size, offset = struct.unpack_from("<II", data, end + 12)
    record = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, counted, counted, size, offset)
    place = struct.pack("<IQI", 0, end, 1)
    last = data[end : end + 8] + b"\xff" * 4 + data[end + 12 :]
    path.write_bytes(data[:end] + b"PK\6\6" + record + b"PK\6\7" + place + last)
    if counted == 2:
        assert read_all(path) == {("1.png",): b"1", ("2.png",): b"2"}
    else:
        refused(path, "it lists 2 of 3 members")


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_truncated_archive(tmp_path, keep):
    path = pack(tmp_path / "t.zip", ("a.png", os.urandom(3000)))
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    refused(path, "not a zip archive, or a truncated one")


def test_an_archive_of_a_version_to_come(tmp_path):
    path = pack(tmp_path / "t.zip", ("a.png", b"1"))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 6] = 99
    path.write_bytes(data)
    refused(path, "not a zip archive, or a truncated one: zip file version 9.9")


def test_neither_directory_nor_archive(tmp_path):
    refused(tmp_path / "gone", "no directory or zip archive")
    text = tmp_path / "data.tar.gz"
    text.write_bytes(b"something else")
    refused(text, "not a zip archive")


def test_links_in_a_directory_are_followed_but_not_round_in_circles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "class").symlink_to(tmp_path / "elsewhere")
    with open_tree(root) as tree:
        assert tree.files == [("class", "x.png")]
        assert tree.read(("class", "x.png")) == b"x"
    (root / "loop").symlink_to(root)
    refused(root, "loop is a link to a folder that it lies in")
    (root / "loop").unlink()
    (root / "dead.png").symlink_to(root / "nothing.png")
    refused(root, r"dead\.png is a link to nothing")


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_neither_file_nor_folder_is_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "pipe":
        os.mkfifo("x.png")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("x.png")
    refused(tmp_path, r"x\.png is neither a file nor a folder")
    with pytest.raises(DataError, match="no directory or zip archive"):
        open_tree(tmp_path / "x.png")


def test_a_folder_that_is_named_like_an_image(tmp_path):
    (tmp_path / "x.png").mkdir()
    (tmp_path / "x.png" / "y.png").touch()
    assert list(read_all(tmp_path)) == [("x.png", "y.png")]


def test_a_password(tmp_path):
    path = pack(tmp_path / "t.zip", ("a.png", b"1"))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    refused(path, r"a\.png' is encrypted")


def test_too_many_files_in_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    for i in range(3):
        (tmp_path / f"{i}").touch()
    refused(tmp_path, "more than 2 files and folders")
