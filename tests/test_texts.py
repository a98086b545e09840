"""Hashed words and n-grams: what is the same, what is left out, and that ids never change."""

from __future__ import annotations

import time

import pytest
import torch

from metazoo.texts import BUCKETS, ngrams


def shared(one: str, other: str) -> int:
    """Return how many ids two texts share."""
    first, second = ({*row.tolist()} - {0} for row in ngrams([one, other], 64))
    return len(first & second)


def test_words_come_first_and_their_ngrams_follow() -> None:
    both = ngrams(["lost card"], 64)[0]
    alone = [ngrams([word], 64)[0] for word in ("lost", "card")]
    assert both[:2].tolist() == [ids[0].item() for ids in alone]
    inner = [ids[1 : int((ids != 0).sum())].tolist() for ids in alone]
    # <lost>: four n-grams of three characters and three of four
    assert [len(ids) for ids in inner] == [7, 7]
    assert both[2:16].tolist() == inner[0] + inner[1]
    assert not both[16:].any()


def test_what_is_too_long_loses_its_ngrams_first() -> None:
    text = "where is my new card"
    assert ngrams([text], 5).tolist() == ngrams([text], 64)[:, :5].tolist()
    assert ngrams([text * 10**5], 5).shape == (1, 5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Card", "card"),
        ("  my\tcard ", "my card"),
        ("ﬁnd", "find"),  # a ligature
        ("STRASSE", "straße"),
        ("cafe\u0301", "café"),
    ],
)
def test_case_spaces_and_forms_of_letters_do_not_matter(one: str, other: str) -> None:
    assert torch.equal(*ngrams([one, other], 32).split(1))


def test_related_words_share_ngrams() -> None:
    assert shared("reservation", "reservations") > shared("reservation", "weather") == 0
    assert shared("我想取消我的预订", "请取消我的预订吧") > 0


def test_no_text_is_too_odd() -> None:
    odd = ["", "   ", "\x00", "\ud800", "🙂🙂", "?!", "a" * 10**6, "\u0301"]
    ids = ngrams(odd, 16)
    assert ids.shape == (len(odd), 16)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) <= BUCKETS
    assert not ids[:2].any()
    assert ngrams([], 16).shape == (0, 16)


def test_the_ids_are_those_of_every_model_that_was_trained() -> None:
    assert ngrams(["Hi, card"], 8).tolist() == [
        [9120, 37641, 19859, 51008, 17216, 32377, 16089, 32972]
    ]


def test_ten_thousand_texts_take_about_a_second() -> None:
    words = [f"{a}{b}" for a in "abcdefgh" for b in ("way", "ation", "ing", "er")]
    texts = [" ".join(words[(i * k) % 32] for k in range(1, 13)) for i in range(10_000)]
    began = time.process_time()
    ngrams(texts, 128)
    assert time.process_time() - began < 5
