"""What a practitioner gets from a few labelled photos or texts, beside what else they would use.

It needs METAZOO_DATA with caltech101_photos.zip and text/, and the extras photos and text. Rivals
get the same embeddings as metazoo. Accuracies are means over tasks or draws with 95 % intervals, on
the same tasks for all; the last column is the paired difference to metazoo.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo import FewShotClassifier
from metazoo.base.algorithm import FeatureLearner
from metazoo.datasets.banking77 import read as read_banking
from metazoo.datasets.caltech101 import Caltech101
from metazoo.datasets.clinc150 import read as read_clinc
from metazoo.datasets.intents import Labelled
from metazoo.evaluation.measure import embedded_examples, evaluate
from metazoo.inputs import read
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler
from metazoo.zoo.find import find

from .harness import Bench, Unavailable

PHOTOS, TEXTS = "ridge.photos", "logistic.text"
SHOTS = (1, 5, 10)
DRAWS = 10
QUERIES = 15
Answer = Callable[[Tensor, Tensor, Tensor], Tensor]  # support_z, support_y, query_z -> labels


def run(bench: Bench) -> None:
    bench.work = "Accuracy, in percent, from a few labelled photos or texts of classes never seen."
    bench.cpu_only()
    root = Path(os.environ.get("METAZOO_DATA") or "")
    if not (root / "caltech101_photos.zip").is_file() or not (root / "text").is_dir():
        raise Unavailable("METAZOO_DATA has no caltech101_photos.zip or no text/")
    photos(bench, str(root))
    banking, clinc = read_banking(str(root)), read_clinc(str(root))
    texts(bench, "BANKING77", banking["train"], banking["test"])
    texts(bench, "CLINC150", clinc["train"], clinc["test"])


def photos(bench: Bench, root: str) -> None:
    """Tasks of the 20 test classes of Caltech-101; rivals see the embeddings of whole photos."""
    data = Caltech101(Caltech101.Config(root=root, size=224)).split("test")
    plain = find("protonet@efficientnet-lite0").model()
    assert isinstance(plain, FeatureLearner)
    features = embedded_examples(plain, data, "cpu")
    model = find(PHOTOS).model()
    for ways in bench.pick((5, 20), (5,)):
        for shots in bench.pick((1, 5), (1,)):
            count = bench.pick(1000 if ways == 5 else 200, 5)
            with bench.part(f"Caltech photos, {ways}-way {shots}-shot"):
                ours = evaluate(model, EpisodeSampler(data, ways, shots, QUERIES, 0), count)
                bench.score(
                    {
                        f"metazoo: {PHOTOS}": ours,
                        "nearest class mean": rated(class_means, features, ways, shots, count),
                        "logistic regression": rated(logistic, features, ways, shots, count),
                    }
                )


def rated(answer: Answer, examples: Examples, ways: int, shots: int, count: int) -> Tensor:
    """Return the accuracy of a rival on each task of seed 0."""
    tasks = EpisodeSampler(examples, ways, shots, QUERIES, 0).draw(0, count)
    values = [
        (answer(tasks.support_x[i], tasks.support_y[i], tasks.query_x[i]) == tasks.query_y[i])
        .float()
        .mean()
        for i in range(count)
    ]
    return torch.stack(values)


def class_means(support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
    """Return the label of the nearest class mean, by cosine similarity."""
    z, queries = F.normalize(support_z, dim=1), F.normalize(query_z, dim=1)
    means = torch.stack([z[support_y == c].mean(0) for c in range(int(support_y.max()) + 1)])
    return (queries @ F.normalize(means, dim=1).T).argmax(1)


def logistic(support_z: Tensor, support_y: Tensor, query_z: Tensor, c: float = 10.0) -> Tensor:
    """Return the label by scikit-learn's logistic regression on normalised features."""
    from sklearn.linear_model import LogisticRegression

    z, queries = F.normalize(support_z, dim=1), F.normalize(query_z, dim=1)
    with warnings.catch_warnings():  # one example a class looks like a regression to it
        warnings.simplefilter("ignore", UserWarning)
        fitted = LogisticRegression(C=c, max_iter=1000).fit(z.numpy(), support_y.numpy())
    return torch.from_numpy(fitted.predict(queries.numpy()))


def texts(bench: Bench, data: str, train: Labelled, test: Labelled) -> None:
    """All intents at once: k examples of each from the training texts, the whole test set."""
    names = sorted({label for _, label in train})
    train_z, test_z = encoded([text for text, _ in train]), encoded([text for text, _ in test])
    names_z = encoded([name.replace("_", " ") for name in names])
    train_y, test_y = (torch.tensor([names.index(y) for _, y in part]) for part in (train, test))
    for shots in bench.pick(SHOTS, (1,)):
        with bench.part(f"{data}, all {len(names)} intents, {shots}-shot"):
            found: dict[str, list[float]] = {}
            for draw in range(bench.pick(DRAWS, 2)):
                rows = drawn(train_y, shots, draw)
                for way, wanted in (("metazoo", "auto"), ("metazoo, without names", None)):
                    classifier = FewShotClassifier(TEXTS, names=wanted)
                    classifier.fit([train[i][0] for i in rows], [train[i][1] for i in rows])
                    answers = classifier.predict([text for text, _ in test])
                    right = np.mean(answers == np.array([label for _, label in test]))
                    found.setdefault(way, []).append(float(right))
                z, y = train_z[rows], train_y[rows]
                both_z, both_y = torch.cat([z, names_z]), torch.cat([y, torch.arange(len(names))])
                for way, answer in (
                    ("class means", class_means(z, y, test_z)),
                    ("logistic regression", logistic(z, y, test_z)),
                    ("logistic regression, a name is an example", logistic(both_z, both_y, test_z)),
                ):
                    found.setdefault(way, []).append(float((answer == test_y).float().mean()))
            bench.score({way: torch.tensor(values) for way, values in found.items()})


@torch.no_grad()
def encoded(texts: list[str]) -> Tensor:
    """Return MiniLM's embeddings of texts, which are those of sentence-transformers."""
    source = find("protonet@minilm")
    model = source.model()
    assert isinstance(model, FeatureLearner)
    return model.features(read(texts, source.blueprint.input_format))


def drawn(y: Tensor, shots: int, draw: int) -> list[int]:
    """Return the rows of `shots` random examples of each class."""
    generator = np.random.default_rng(draw)
    return [
        int(row)
        for label in range(int(y.max()) + 1)
        for row in generator.choice(np.flatnonzero(y.numpy() == label), shots, replace=False)
    ]
