"""Texts as integers, without a vocabulary: hashed words and n-grams of characters."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import torch
from torch import Tensor

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
