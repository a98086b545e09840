"""Examples that are integers, such as token ids, from a plugin's data set to its users' labels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from distributions import ALGORITHM, ROOT, Distribution
from forks import Forks

TOKENS = Distribution(
    ALGORITHM
    + """
import torch
from torch import nn

class Sentences(metazoo.ClassDataset):
    def load(self):
        noise = torch.Generator().manual_seed(0)
        topics = torch.randint(50, (12, 1, 4), generator=noise).expand(12, 10, 4)
        x = topics.gather(2, torch.randint(4, (12, 10, 6), generator=noise)).flatten(0, 1)
        return {
            name: metazoo.Examples(x[40 * i : 40 * i + 40], (10,) * 4, tuple(f"{name}{k}" for k in range(4)))
            for i, name in enumerate(("train", "val", "test"))
        }

class Embedding(metazoo.Backbone):
    def __init__(self, input_shape, config=None):
        super().__init__(input_shape, config)
        self.out_features, self.table = 16, nn.Embedding(50, 16)

    def forward(self, x):
        return self.table(x).mean(1)

class Bag(Embedding):
    def forward(self, x):
        return nn.functional.embedding_bag(x, self.table.weight)

@metazoo.hookimpl
def register_algorithms():
    return {"nearest": Nearest}

@metazoo.hookimpl
def register_backbones():
    return {"embedding": Embedding, "sum": Bag}

@metazoo.hookimpl
def register_datasets():
    return {"sentences": Sentences}
"""
)
PROGRAM = """
import metazoo
from metazoo.cli import run
from metazoo.zoo.find import find

words = "--dataset sentences --ways 3 --train-ways 3 --queries 2 --steps 2 --validate-every 2"
sizes = "--validation-episodes 2 --test-episodes 2 --out run".split()
assert run(["train", "maml", *words.split(), "--backbone", "sum", *sizes]) == 2
assert run(["train", "nearest", *words.split(), "--backbone", "embedding", *sizes]) == 0
classifier = metazoo.FewShotClassifier("run", device="cpu")
assert find("run").blueprint.spec.integers
x = find("run").blueprint.data().split("test").x.unflatten(0, (4, 10))
labels = [name for name in "abcd" for _ in range(5)]
classifier.fit(x[:, :5].flatten(0, 1), labels)
queries = x[:, 5:].flatten(0, 1)
for form in (queries, queries.int(), queries.byte(), queries.numpy()):
    assert classifier.predict(form).tolist() == labels
try:
    classifier.predict(queries.float())
except metazoo.DataError as error:
    print(error)
"""


@pytest.mark.slow
def test_integers_reach_the_backbone_as_integers(tmp_path: Path, fresh_python: Forks) -> None:
    wheel = TOKENS.write(tmp_path, "tokens")
    path = os.pathsep.join([str(wheel), str(ROOT)])
    done = fresh_python.run(PROGRAM, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "backbone Bag has no second derivative" in done.stderr
    assert "hint: use a first-order variant" in done.stderr
    assert "examples are torch.float32, but 'run' takes integers" in done.stdout
