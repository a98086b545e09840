"""CLINC150: utterances of 150 intents and out-of-scope queries by Larson et al. 2019, "An Evaluation
Dataset for Intent Classification and Out-of-Scope Prediction" (arXiv:1909.02027)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from metazoo.base.dataset import Dataset
from metazoo.datasets.download import find_or_fetch, read_whole
from metazoo.datasets.intent_folds import CLINC150 as FOLDS
from metazoo.datasets.intents import Intents, Labelled, check_intents, grouped
from metazoo.errors import DataError
from metazoo.io.files import LARGEST_JSON, parse_json
from metazoo.plugins.marker import hookimpl

FILE = "data_full.json"
SHA256 = "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0"
URL = "https://raw.githubusercontent.com/clinc/oos-eval/master/data"
PARTS = ("train", "val", "test")  # of the intents; each has its out-of-scope part, as "oos_test"


class CLINC150(Intents):
    """English utterances for a voice assistant, 150 of each intent. A class is an intent.

    The classes are divided into 50/50/50 by one of the five folds of Dopierre et al. 2021
    (arXiv:2105.12995). A class has its texts of all three published parts: 100 for training, 20 for
    validation and 30 for test. The out-of-scope queries belong to no class; `read` returns them.

    Raises DataError if the file is missing and cannot be downloaded, is damaged, or does not have
    the 150 intents.
    """

    @dataclass(frozen=True)
    class Config(Intents.Config):
        url: Annotated[str, "where to download from"] = URL

    config: Config
    folds = FOLDS
    licence = "CC BY 3.0"

    def texts(self) -> dict[str, list[str]]:
        parts = read(self.config.root, self.config.url)
        return grouped([row for part in PARTS for row in parts[part]])


def read(root: str | None = None, url: str = URL) -> dict[str, Labelled]:
    """Return the texts of each published part, each with its intent.

    The parts are "train", "val" and "test", and of the out-of-scope queries "oos_train", "oos_val"
    and "oos_test". `root` and `url` are as in the options of the data set.
    """
    also = ("text/clinc150.json.gz", f"data/{FILE}")
    path = find_or_fetch(root, "clinc150", FILE, url, SHA256, "sha256", also)
    try:
        found = parse_json(read_whole(path, LARGEST_JSON))
        parts = {part: _pairs(found[part]) for name in PARTS for part in (name, f"oos_{name}")}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not the file of CLINC150: {error!r}", f"get {FILE} from {URL}"
        ) from None
    for part in PARTS:
        check_intents(path, parts[part], FOLDS)
    return parts


def _pairs(rows: Any) -> Labelled:
    pairs = [(text, intent) for text, intent in rows]
    if not all(isinstance(word, str) for pair in pairs for word in pair):
        raise ValueError("a row is not a text and an intent")
    return pairs


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"clinc150": CLINC150}
