"""Texts as integers: hashed words and n-grams of characters, or the tokens of a tokenizer.json."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metazoo.errors import CheckpointError, OptionError, first_line

NGRAMS = "ngrams"
BUCKETS = 2**16  # ids are from 1 to BUCKETS; 0 pads

_SIZES = (3, 4)  # characters of an n-gram
_WORD = re.compile(r"\w{1,64}|[^\w\s]")


def ngrams(raw: list[str], length: int) -> Tensor:
    """Return the ids of the words of texts, then of their n-grams, (N, length) int64, padded by 0.

    Case does not matter. An n-gram is three or four characters of a word with its boundaries, as in
    Bojanowski et al. 2017 (arXiv:1607.04606). What exceeds `length` is left out, n-grams first.
    """
    ids = np.zeros((len(raw), length), np.int64)
    for row, text in zip(ids, raw):
        found = _WORD.finditer(unicodedata.normalize("NFKC", text).casefold())
        words = [_ids(word[0]) for word in itertools.islice(found, length)]
        inner = itertools.chain.from_iterable(word[1:] for word in words)
        taken = [word[0] for word in words] + list(itertools.islice(inner, length - len(words)))
        row[: len(taken)] = taken
    return torch.from_numpy(ids)


@functools.lru_cache(maxsize=2**16)
def _ids(word: str) -> tuple[int, ...]:
    """Return the id of a word, then those of its n-grams."""
    bounded = f"<{word}>"
    inner = (
        bounded[i : i + size]
        for size in _SIZES
        for i in range(len(bounded) - size + 1)
        if size < len(bounded)
    )
    return tuple(map(_bucket, (bounded, *inner)))


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
