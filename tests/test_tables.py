"""Tables of examples: formats, guesses, and errors that name the line."""

from __future__ import annotations

import gzip
import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metazoo.errors import DataError, MetazooError, OptionError
from metazoo.io import rows as rows_of
from metazoo.tables import Columns, Row, Table, open_table

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, contents: str | bytes) -> Path:
        data = contents if isinstance(contents, bytes) else contents.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return written


def opened(source: Any, **columns: Any) -> tuple[Table, list[Row]]:
    with open_table(source, Columns(**columns)) as table:
        return table, list(table.rows)


def pairs(rows: list[Row]) -> list[tuple[Any, Any]]:
    return [(row.example, row.label) for row in rows]


CARDS = [("my card, please", "card"), ('it is "lost"', "lost"), ("two\nlines", "card")]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.csv", 'text,label\n"my card, please",card\n"it is ""lost""",lost\n"two\nlines",card\n'),
        (
            "a.CSV",
            'label, text\r\ncard,"my card, please"\r\nlost,it is "lost"\r\ncard,"two\nlines"',
        ),
        ("a.csv.gz", 'text;label\nmy card, please;card\n\nit is "lost";lost\n"two\nlines";card\n'),
        ("a.tsv", 'text\tlabel\nmy card, please\tcard \nit is "lost"\tlost\n"two\nlines"\tcard\n'),
        (
            "a.jsonl",
            '{"text": "my card, please", "label": "card"}\n\n'
            '{"label": "lost", "text": "it is \\"lost\\""}\r\n'
            '{"text": "two\\nlines", "label": "card", "more": [1]}',
        ),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_format_gives_the_same_rows(
    write: Write, name: str, contents: str, mark: bytes
) -> None:
    table, rows = opened(write(name, mark + contents.encode()))
    assert (table.kind, table.columns.text, table.columns.label) == ("text", "text", "label")
    assert pairs(rows) == CARDS


def test_lines_are_those_on_which_rows_begin(write: Write) -> None:
    path = write("a.csv", 'text,label\n"one\n\nthree",a\n\nfour,b\nfive,\n')
    assert [(row.line, row.label) for row in opened(path)[1]] == [(2, "a"), (6, "b"), (7, None)]
    path = write("a.jsonl", '\n{"text": "one"}\n\n{"text": "two", "label": null}\n')
    assert [(row.line, row.label) for row in opened(path)[1]] == [(2, None), (4, None)]


def test_lines_of_text_are_texts() -> None:
    stream = io.BytesIO("one, two\n\n  three \r\nfünf".encode())
    table, rows = opened(stream)
    assert table.kind == "text"
    assert table.said == []
    assert [row.example for row in rows] == ["one, two", "  three ", "fünf"]
    assert not stream.closed


def test_a_stream_may_be_any_table() -> None:
    stream = io.BytesIO(b"utterance,intent\nhello,greet\n")
    with open_table(stream, format="csv") as table:
        assert pairs(list(table.rows)) == [("hello", "greet")]
    assert not stream.closed


def test_rows_are_read_one_at_a_time() -> None:
    class Endless(io.RawIOBase):
        """A table that never ends."""

        def __init__(self) -> None:
            self.lines = itertools.chain([b"text,label\n"], itertools.repeat(b"hello,greet\n"))

        def readline(self, size: int | None = -1) -> bytes:
            return next(self.lines)

    with open_table(Endless(), format="csv") as table:
        assert len(list(itertools.islice(table.rows, 5000))) == 5000


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        ("id,utterance,intent", "utterance", "intent"),
        ("Category,TEXT,query", "TEXT", "Category"),
        ("review,sentiment,y", None, "y"),
        ("words,label", "words", "label"),
        (",words,target", "words", "target"),
    ],
)
def test_columns_are_guessed_by_name(
    write: Write, header: str, text: str | None, label: str
) -> None:
    values = {"id": "1", "": "0"}
    row = ",".join(values.get(name, f"a {name}") for name in header.split(","))
    table, rows = opened(write("a.csv", f"{header}\n{row}\n"))
    text = text or "review"
    assert (table.columns.text, table.columns.label) == (text, label)
    assert pairs(rows) == [(f"a {text}", f"a {label}")]
    assert len(table.said) == 1
    assert table.said[0].endswith(f"a.csv has texts in '{text}' and labels in '{label}'")


def test_named_columns_win_and_are_not_said(write: Write) -> None:
    path = write("a.csv", "text,label,other,real,split\na,b,c,d,train\n")
    table, rows = opened(path, text="other", label="real", split="split")
    assert table.said == []
    assert rows == [Row("c", "d", "train", 2)]
    assert opened(path, text="other")[0].said == [f"{path} has labels in 'label'"]


def test_a_delimiter_that_is_guessed_is_said(write: Write) -> None:
    table, _ = opened(write("a.csv", "text;label\na;b\n"))
    assert "a.csv are separated by ';'" in table.said[0]


def test_paths_are_relative_to_the_table(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.csv", "file,label\ncat.png,cat\n./cat.png , dog \n")
    cat = write("cat.png", b"not read here")
    table, rows = opened(path)
    assert table.kind == "image"
    assert pairs(rows) == [(cat, "cat"), (cat, "dog")]
    monkeypatch.chdir(path.parent)
    assert opened(io.BytesIO(b"cat.png\n"), path="text")[1][0].example == Path("cat.png")
    captions = write("b.csv", "image,text,label\nno.png,a cat,cat\n")
    assert opened(captions)[0].kind == "text"
    write("no.png", b"")
    with pytest.raises(DataError, match="has both texts \\('text'\\) and files \\('image'\\)"):
        opened(captions)


def test_all_other_columns_may_be_numbers(write: Write) -> None:
    path = write("a.csv", "id,width,y,depth\n7, 1.5 ,thin,-2e3\n8,0,thick,4\n")
    table, rows = opened(path)
    assert table.kind == "numbers"
    assert table.columns.numbers == ("width", "depth")
    assert table.said == [f"{path} has numbers in 'width', 'depth' and labels in 'y'"]
    assert pairs(rows) == [([1.5, -2000.0], "thin"), ([0.0, 4.0], "thick")]
    assert opened(path, numbers=("depth", "id"))[1][0].example == [-2000.0, 7.0]
    path = write("a.jsonl", '{"a": 1, "b": 2.5, "label": 3}\n{"b": 1, "a": "4", "label": true}')
    assert pairs(opened(path)[1]) == [([1.0, 2.5], "3"), ([4.0, 1.0], "true")]


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("a.csv", "", "a.csv is empty"),
    "only a mark": ("a.csv", b"\xef\xbb\xbf", "a.csv is empty"),
    "no objects": ("a.jsonl", "\n\n", "a.jsonl is empty"),
    "too few fields": ("a.csv", "text,label\na,b\nc\n", "line 3: the row has 1 fields"),
    "too many fields": ("a.csv", "text,label\na,b,c\n", "line 2: the row has 3 fields"),
    "an open quote": ("a.csv", 'text,label\na,b\n"c,d\ne,f\n', "line 3: the row cannot be read"),
    "a stray quote": ("a.csv", 'text,label\n"a"b,c\n', "line 2: the row cannot be read"),
    "a lone carriage return": ("a.csv", "text,label\rab,c\rd,e\r", "line 1: the row cannot"),
    "one name twice": ("a.csv", "text,label,text\na,b,c\n", "line 1: two columns are named 'text'"),
    "not UTF-8": ("a.csv", b"text,label\na,b\n\xe9,b\n", "line 3: it is not UTF-8"),
    "UTF-16": ("a.csv", "text,label\n".encode("utf-16"), "line 1: it is not UTF-8"),
    "an empty text": ("a.csv", "text,label\n ,b\n", "line 2: 'text' is empty"),
    "no such file": ("a.csv", "path,label\nno.png,b\n", "line 2: there is no file no.png in "),
    "a folder": ("a.csv", "path,label\n.,b\n", r"line 2: there is no file \. in "),
    "a NUL in a path": ("a.jsonl", '{"path": "a\\u0000", "label": 1}', "line 1: there is no file"),
    "a missing number": ("a.csv", "x,z,label\n1,2,b\n,2,b\n", "line 3: 'x' is empty"),
    "no number": (
        "a.csv",
        "x,z,label\n" + "1,2,b\n" * 200 + "1,?,b",
        "line 202: 'z' is '\\?', not",
    ),
    "infinity": ("a.csv", "x,label\n" + "1,b\n" * 200 + "inf,b", "line 202: 'x' is 'inf', not"),
    "NaN": ("a.jsonl", '{"x": 1, "y": 1}\n' * 100 + '{"x": NaN, "y": 1}', "line 101: 'x' is nan"),
    "not JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: it is not JSON"),
    "not an object": ("a.jsonl", '["a"]', "line 1: it is not a JSON object"),
    "a key twice": (
        "a.jsonl",
        '{"text": "a", "text": "b"}',
        "line 1: it is not JSON: it has a key",
    ),
    "too deep": ("a.jsonl", '{"text": ' + "[" * 10**5, "line 1: it is not JSON"),
    "a text that is a number": ("a.jsonl", '{"text": 3}', "line 1: 'text' is 3, not a text"),
    "a missing text": ("a.jsonl", '{"text": "a"}\n{"txet": "b"}', "line 2: 'text' is empty"),
    "a label that is a list": (
        "a.jsonl",
        '{"text": "a", "label": [1]}',
        "line 1: 'label' is \\[1\\]",
    ),
    "nothing but labels": ("a.csv", "label\na\n", "cannot be guessed; its columns are 'label'"),
    "words and numbers": ("a.csv", "colour,size,label\nred,1,a\n", "cannot be guessed"),
    "two columns of words": ("a.csv", "a,b,label\nx,y,z\n", "cannot be guessed"),
    "only a header": ("a.csv", "a,label\n", "cannot be guessed"),
    "control characters": ("a.csv", "\x1b[2J,\x1b[3J,label\nx,y,z\n", r"columns are '\\x1b\[2J'"),
    "not packed": ("a.csv.gz", "", "is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_table_is_an_error_that_names_the_line(write: Write, case: str) -> None:
    name, contents, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        opened(write(name, contents))
    assert name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"text": "txt"}, OptionError, "has no column 'txt'"),
        ({"label": "lable"}, OptionError, "has no column 'lable'"),
        ({"split": "part"}, OptionError, "has no column 'part'"),
        ({"text": "a", "path": "b"}, OptionError, "are texts, files or numbers"),
    ],
)
def test_columns_that_are_not_there(
    write: Write, columns: dict[str, str], error: type[MetazooError], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(write("a.csv", "text,label\na,b\n"), **columns)


def test_labels_may_be_demanded(write: Write) -> None:
    path = write("a.csv", "text,sentiment\na,b\n")
    assert opened(path)[1] == [Row("a", None, None, 2)]
    with pytest.raises(DataError, match="its columns are 'text', 'sentiment'") as caught:
        open_table(path, labelled=True)
    assert "with the option 'label'" in (caught.value.hint or "")


def test_a_file_that_is_no_table_is_named(tmp_path: Path, write: Write) -> None:
    for path, message in {
        tmp_path / "no.csv": "there is no file .*no.csv",
        write("a.xlsx", b"PK"): "does not have the suffix of a table",
        tmp_path: "does not have the suffix",
    }.items():
        with pytest.raises(DataError, match=message):
            open_table(path)
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("folder.csv", "pipe.csv"):
        with pytest.raises(DataError, match=f"{name} is not a file"):
            open_table(tmp_path / name)


@pytest.mark.parametrize("cut", [5, 30, -9, -1])
def test_a_packed_table_that_is_truncated(write: Write, cut: int) -> None:
    path = write("a.csv.gz", "text,label\n" + "".join(f"text {i},b\n" for i in range(99)))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.csv\.gz"):
        opened(path)
    path.write_bytes(b"text,label\na,b\n")
    with pytest.raises(DataError, match="cannot be read after line 0"):
        opened(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_a_row_has_an_end(write: Write, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(rows_of, "LONGEST", 100)
    header = '{"text": "a"}\n' if name == "a.jsonl" else "text,label\n"
    with pytest.raises(DataError, match="line 2: the row has more than 100 bytes"):
        opened(write(name, header + "a" * 200))
    if name == "a.csv":  # a quote that is never closed
        with pytest.raises(DataError, match="line 11: the row has more than 100 bytes"):
            opened(write(name, header + '"' + "a,b,c,d,e\n" * 20))
        opened(write(name, header + "a,b\n" * 100))


def test_a_field_beyond_the_limit_of_the_csv_module(write: Write) -> None:
    with pytest.raises(DataError, match="line 2: the row cannot be read: field larger"):
        opened(write("a.csv", "text,label\n" + "a" * 200_000 + ",b\n"))
