"""How text from outside is shown: control characters, words of a shell command, credentials."""

from __future__ import annotations

import os
import re
import shlex

# C0, DEL and C1; marks, embeddings, overrides and isolates of the direction of writing; line and
# paragraph separators; surrogates, which no encoding can print.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CREDENTIALS = re.compile(r"(://)[^/?#\s'\"]*@")


def printable(text: str, keep: str = "") -> str:
    """Return a text with its control characters as escapes, so it cannot steer a terminal.

    Args:
        text: any text, such as a file name.
        keep: control characters to leave as they are, such as a newline.
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(),
        text,
    )


def shell_word(word: str | os.PathLike[str]) -> str:
    """Return a path or name as one word of a shell command; control characters become `$'...'`."""
    text = os.fspath(word)
    if printable(text) == text:
        return shlex.quote(text)
    try:
        data = text.encode("utf-8", "surrogateescape")  # a path may hold any byte
    except UnicodeEncodeError:  # no path holds this
        return shlex.quote(printable(text))
    plain = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in data
    )
    return f"$'{''.join(plain)}'"


def shown_address(url: str) -> str:
    """Return an address for a message: without user, password and query, which may be secrets."""
    bare = re.sub(r"(^|//)[^/?#]*@", r"\1", url)
    return re.sub(r"\?[^#]*", "?...", bare)


def without_credentials(text: str) -> str:
    """Return a text in which `***` replaces the user name and password of every URL."""
    return _CREDENTIALS.sub(r"\1***@", text)
