"""BANKING77: questions of a bank's customers by Casanueva et al. 2020, "Efficient Intent Detection
with Dual Sentence Encoders" (arXiv:2003.04807)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from metazoo.base.dataset import Dataset
from metazoo.datasets.download import find_or_fetch
from metazoo.datasets.intent_folds import BANKING77 as FOLDS
from metazoo.datasets.intents import Intents, Labelled, check_intents, grouped
from metazoo.plugins.marker import hookimpl
from metazoo.tables import open_table

SHA256 = {
    "train": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}
URL = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data"


class BANKING77(Intents):
    """English questions of a bank's customers, of 77 intents. A class is an intent.

    The classes are divided into 25/25/27 by one of the five folds of Dopierre et al. 2021
    (arXiv:2105.12995). A class has its texts of both published files, train.csv and test.csv: from
    75 to 227.

    Raises DataError if a file is missing and cannot be downloaded, is damaged, or does not have the
    77 intents.
    """

    @dataclass(frozen=True)
    class Config(Intents.Config):
        url: Annotated[str, "where to download from"] = URL

    config: Config
    folds = FOLDS
    licence = "CC BY 4.0"

    def texts(self) -> dict[str, list[str]]:
        parts = read(self.config.root, self.config.url)
        return grouped(parts["train"] + parts["test"])


def read(root: str | None = None, url: str = URL) -> dict[str, Labelled]:
    """Return the texts of each published part, "train" and "test", each with its intent.

    `root` and `url` are as in the options of the data set.
    """
    parts = {}
    for part, sha256 in SHA256.items():
        file = f"{part}.csv"
        also = (f"text/banking77_{file}.gz", f"banking_data/{file}")
        path = find_or_fetch(root, "banking77", file, url, sha256, "sha256", also)
        with open_table(path, labelled=True) as table:
            parts[part] = [(str(row.example), row.label or "") for row in table.rows]
        check_intents(path, parts[part], FOLDS)
    return parts


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"banking77": BANKING77}
