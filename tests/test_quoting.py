"""Text from outside: escapes, words of a shell, credentials."""

from __future__ import annotations

import os
import subprocess

import pytest

import metazoo
from metazoo.errors import MetazooError
from metazoo.quoting import printable, shell_word, without_credentials

CONTROL = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    "\ud800",
    "\udcff",
    "\udfff",
]


def test_control_characters_are_shown_as_escapes() -> None:
    for character in CONTROL:
        shown = printable(f"a{character}b")
        assert shown.isprintable()
        assert shown == f"a{character.encode('unicode_escape').decode()}b"
    assert printable("[red] ± 日本 é\\") == "[red] ± 日本 é\\"
    assert printable("a\n\tb\x1b", keep="\n") == "a\n\\tb\\x1b"


@pytest.mark.parametrize(
    "word",
    ["runs/a", "a b", "it's", "$(id)", "`id`", "a;b", "", "*", *(f"a{c}'\\" for c in CONTROL)],
)
def test_a_shell_reads_a_quoted_word_as_it_was(word: str) -> None:
    shown = shell_word(word)
    assert printable(shown) == shown
    if "\0" in word or any("\ud7ff" < c < "\udc80" or "\udcff" < c < "\ue000" for c in word):
        return  # no file has such a name
    command = ["bash", "-c", f"printf %s {shown}"]
    found = subprocess.run(command, check=True, capture_output=True).stdout
    assert found == os.fsencode(word)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host/x.json", "https://***@host/x.json"),
        ("see 'https://secret@host:80'", "see 'https://***@host:80'"),
        ("https://me:se@cret@host/a@b", "https://***@host/a@b"),
        ("hf://user/repo@v1/name and me@host", "hf://user/repo@v1/name and me@host"),
        ("https://host/?mail=a@b", "https://host/?mail=a@b"),
    ],
)
def test_credentials_are_left_out(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    error = MetazooError(text, text)
    assert (error.message, error.hint) == (shown, shown)
    assert "secret" not in f"{error} {error!r}"


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(MetazooError) as caught:
        metazoo.load("https://me:secret@localhost:1/protonet.x.json")
    assert "https://localhost:1/protonet.x.json" in caught.value.message
    assert "secret" not in str(caught.value)
