"""Texts as integers: hashed words and n-grams of characters, or the tokens of a tokenizer.json."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

import torch
from torch import Tensor

from metazoo.errors import CheckpointError, OptionError, first_line

NGRAMS = "ngrams"
BUCKETS = 2**16  # ids are from 1 to BUCKETS; 0 pads


def ngrams(raw: list[str], length: int) -> Tensor:
    """Return the ids of the words and character n-grams of texts, (N, length) int64, padded by 0."""
    ids = torch.zeros(len(raw), length, dtype=torch.long)
    for row, text in zip(ids, raw):
        found = [_bucket(piece) for piece in _pieces(text)][:length]
        row[: len(found)] = torch.tensor(found, dtype=torch.long)
    return ids


def _pieces(text: str) -> list[str]:
    words = re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", text).casefold())
    return [piece for word in words for piece in (word, *_inner(f"<{word}>"))]


def _inner(word: str) -> list[str]:
    return [word[i : i + 4] for i in range(len(word) - 3)] if len(word) > 4 else []


def _bucket(piece: str) -> int:
    digest = hashlib.blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % BUCKETS


def read_tokenizer(contents: bytes, length: int, extra: str) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json, which truncates texts to `length` tokens.

    Raises OptionError, naming the extra of metazoo to install, if `tokenizers` is missing, and
    CheckpointError if the file is damaged.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise OptionError(
            "texts need the package tokenizers, which is not installed",
            f'`pip install "metazoo[{extra}]"`',
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(contents)
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(
            f"a tokenizer cannot be read: {first_line(error)}", "it is damaged; get it again"
        ) from error
    return tokenizer


def token_ids(tokenizer: Any, raw: list[str], length: int) -> Tensor:
    """Return the tokens of texts as their ids plus 1, (N, length) int64, padded by 0.

    A tokenizer may use the id 0 for a token, as for "[PAD]" in a text.
    """
    # A lone surrogate, which no UTF-8 has, would be refused.
    whole = [text.encode("utf-8", "replace").decode() for text in raw]
    ids = torch.zeros(len(raw), length, dtype=torch.long)
    for row, encoding in zip(ids, tokenizer.encode_batch_fast(whole)):
        row[: len(encoding.ids)] = 1 + torch.tensor(encoding.ids, dtype=torch.long)
    return ids
