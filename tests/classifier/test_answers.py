"""What the classifier answers, and what it refuses or warns of."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import EQUAL, LABELS, image_model, tensors
from pictures import picture
from PIL import Image
from torch import Tensor

import metazoo
from metazoo import zoo
from metazoo.base.algorithm import Algorithm
from metazoo.classifier import FewShotClassifier
from metazoo.classifier.head import QUERIES_AT_ONCE
from metazoo.errors import DataError, DataWarning, OptionError, UnknownNameError
from metazoo.evaluation.score import NotANumber
from metazoo.plugins.registry import registry


def test_it_classifies_easy_shapes(classifier: FewShotClassifier) -> None:
    queries = ["ring", "bar", "dot", "dot", "bar"]
    assert classifier.classes_.tolist() == ["bar", "dot", "ring"]
    assert classifier.predict(tensors(queries, 1)).tolist() == queries
    probabilities = classifier.predict_proba(tensors(queries, 1))
    assert probabilities.shape == (5, 3)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert [classifier.classes_[i] for i in probabilities.argmax(1)] == queries


def test_its_probabilities_are_those_of_the_model(
    protonet_run: Path,
) -> None:
    classifier = FewShotClassifier(protonet_run, device="cpu", calibrate=False)
    classifier.fit(tensors(LABELS), LABELS)
    support, query = tensors(LABELS).float() / 255, tensors(["dot", "bar"], 5).float() / 255
    labels = torch.tensor([[["bar", "dot", "ring"].index(label) for label in LABELS]])
    with torch.no_grad():
        logits = zoo.load(protonet_run)(support.unsqueeze(0), labels, query.unsqueeze(0))[0]
    assert np.allclose(
        classifier.predict_proba(tensors(["dot", "bar"], 5)), logits.softmax(-1).numpy(), atol=1e-6
    )


def test_every_form_of_example_gives_the_same_answer(
    classifier: FewShotClassifier, tmp_path: Path
) -> None:
    queries = ["ring", "bar", "dot"]
    wanted = classifier.predict_proba(tensors(queries, 1))
    images = [picture(label, 1 + i) for i, label in enumerate(queries)]
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        image.save(paths[-1])
    x = tensors(queries, 1)
    read_only = x.numpy().copy()
    read_only.flags.writeable = False
    forms: list[Any] = [
        images,
        paths,
        [str(p) for p in paths],
        tuple(paths),
        iter(paths),
        x.numpy(),
        x.float() / 255,
        x.double() / 255,
        (x.float() / 255).numpy(),
        x.numpy()[::-1].copy()[::-1],
        read_only,
    ]
    for form in forms:
        kind = type(form).__name__
        assert np.allclose(classifier.predict_proba(form), wanted, atol=1e-5), kind


def test_the_bytes_of_the_weights_are_not_kept(
    classifier: FewShotClassifier, protonet_run: Path
) -> None:
    pickled = pickle.dumps(classifier)
    assert zoo.find(protonet_run).contents[:1000] not in pickled
    again = pickle.loads(pickled)
    assert np.array_equal(
        again.predict_proba(tensors(LABELS)), classifier.predict_proba(tensors(LABELS))
    )


def test_invert_swaps_dark_and_light(protonet_run: Path) -> None:
    white = [
        Image.eval(picture(label, i), lambda value: 255 - value) for i, label in enumerate(LABELS)
    ]
    black = [picture(label, i) for i, label in enumerate(LABELS)]
    raw = partial(FewShotClassifier, protonet_run, device="cpu", calibrate=False)
    usual = raw().fit(black, LABELS).predict_proba(black)
    swapped = raw(invert=False).fit(white, LABELS)
    assert np.allclose(swapped.predict_proba(white), usual, atol=0.02)
    with pytest.warns(DataWarning, match="dark and light seem swapped"):
        assert not np.allclose(swapped.predict_proba(black), usual, atol=0.1)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([3, 1, 2, 1, 3, 2, 2], [1, 2, 3]),
        (np.array([3, 1, 2, 1, 3, 2, 2]), [1, 2, 3]),
        (torch.tensor([3, 1, 2, 1, 3, 2, 2]), [1, 2, 3]),
        ([torch.tensor(i) for i in (3, 1, 2, 1, 3, 2, 2)], [1, 2, 3]),
        (list(np.array([3, 1, 2, 1, 3, 2, 2])), [1, 2, 3]),
        (np.array(["c", "a", "b", "a", "c", "b", "b"]), ["a", "b", "c"]),
        ([True, False, True, False, True, True, True], [False, True]),
        (
            [("x", 1), ("x", 0), ("w", 5), ("x", 0), ("x", 1), ("w", 5), ("w", 5)],
            [("w", 5), ("x", 0), ("x", 1)],
        ),
        (["b", 1, "a", 1, "b", "a", "a"], [1, "a", "b"]),
        ((n for n in (3, 1, 2, 1, 3, 2, 2)), [1, 2, 3]),
    ],
)
def test_labels_of_every_type(protonet_run: Path, labels: Any, classes: list[Any]) -> None:
    classifier = FewShotClassifier(protonet_run, device="cpu").fit(tensors(LABELS), labels)
    found = classifier.classes_.tolist()
    assert found == classes
    assert all(type(ours) is type(theirs) for ours, theirs in zip(found, classes))
    assert set(classifier.predict(tensors(LABELS)).tolist()) <= set(classes)


def test_zero_queries_and_many_queries(classifier: FewShotClassifier) -> None:
    assert classifier.predict([]).tolist() == []
    assert classifier.predict_proba(torch.zeros(0, 1, 28, 28)).shape == (0, 3)
    many = tensors(["bar", "ring"] * 3, 1).repeat(QUERIES_AT_ONCE // 4, 1, 1, 1)
    assert len(many) > QUERIES_AT_ONCE
    one_by_one = classifier.predict_proba(many[:6])
    assert np.allclose(classifier.predict_proba(many)[-6:], one_by_one, atol=1e-5)


@pytest.mark.parametrize("chosen", [{}, {"batch_norm": "batch"}])
def test_answers_depend_on_other_queries_only_if_that_is_asked_for(
    maml_run: Path, chosen: dict[str, Any]
) -> None:
    assert zoo.load(maml_run).transductive
    classifier = FewShotClassifier(maml_run, device="cpu", options=chosen).fit(
        tensors(EQUAL), EQUAL
    )
    queries = tensors(["bar", "dot", "ring", "ring"], 1)
    assert classifier._fitted.model.learner.transductive == bool(chosen)
    warns = partial(pytest.warns, DataWarning) if chosen else lambda match: nullcontext()
    with warns(match="each answer depends on all 4 queries"):
        together = classifier.predict_proba(queries)
    with warns(match="answer to a single query may be no better than guessing"):
        alone = np.concatenate([classifier.predict_proba(q.unsqueeze(0)) for q in queries])
    assert together.shape == alone.shape == (4, 3)
    assert np.allclose(together, alone, atol=1e-4) == (not chosen)


class Centred(metazoo.FeatureLearner):
    """Subtracts the mean of the queries: transductive, without options that change that."""

    transductive = True

    def classify(self, support_z: Any, support_y: Any, query_z: Any) -> Any:
        means = metazoo.class_means(support_z, support_y)
        query_z = query_z - query_z.mean(1, keepdim=True)
        return -metazoo.ops.pairwise_sqdist(query_z, means)


class Broken(metazoo.FeatureLearner):
    """Answers with what `value` says."""

    value = float("nan")

    def classify(self, support_z: Any, support_y: Any, query_z: Any) -> Any:
        answers = -metazoo.ops.pairwise_sqdist(query_z, metazoo.class_means(support_z, support_y))
        answers[..., 0] = self.value
        return answers


def test_a_transductive_learner_without_such_options_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = FewShotClassifier(image_model(monkeypatch, Centred), device="cpu")
    classifier.fit(tensors(EQUAL), EQUAL)
    with pytest.warns(DataWarning, match="answer to a single query"):
        classifier.predict(tensors(["bar"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_no_answers(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model(monkeypatch, type("Bad", (Broken,), {"value": value}))
    with pytest.raises(NotANumber, match="the model returned NaN or infinity"):
        FewShotClassifier(model, device="cpu").fit(tensors(EQUAL), EQUAL).predict(tensors(["bar"]))


@pytest.mark.parametrize(("labels", "warned"), [(LABELS, True), (EQUAL * 2, False)])
def test_unequal_classes_are_told_of_if_the_learner_needs_equal_ones(
    maml_run: Path, protonet_run: Path, labels: list[str], warned: bool
) -> None:
    with pytest.warns(DataWarning, match="from 2 to 3 examples") if warned else nullcontext():
        FewShotClassifier(maml_run, device="cpu").fit(tensors(labels), labels)
    FewShotClassifier(protonet_run, device="cpu").fit(tensors(labels), labels)


def test_the_learners_that_need_equal_classes_say_so() -> None:
    found = {e.name for e in registry().algorithms if e.value.equal_shots}
    assert {"maml", "matching", "baseline", "baseline++"} <= found
    assert "protonet" not in found


class ByPosition(Algorithm):
    """Answers by the positions of the query and of the support examples."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        ways = int(support_y.max()) + 1
        place = torch.arange(query_x.shape[1]).unsqueeze(1) * torch.arange(ways)
        return (place + query_x.mean((0, 2, 3, 4)).unsqueeze(1) * support_y[0, :ways]).sin()[None]


@pytest.mark.filterwarnings("ignore::metazoo.errors.DataWarning")
@pytest.mark.parametrize("transductive", [False, True])
def test_the_order_of_examples_does_not_matter_to_any_model(
    transductive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByPosition, "transductive", transductive)
    classifier = FewShotClassifier(image_model(monkeypatch, ByPosition), device="cpu")
    x, queries = tensors(LABELS), tensors(["bar", "dot", "ring", "ring", "bar"], 1)
    wanted = classifier.fit(x, LABELS).predict_proba(queries)
    assert len(np.unique(wanted, axis=0)) == 5
    other, order = [4, 0, 6, 2, 5, 1, 3], [3, 0, 4, 1, 2]
    answers = classifier.fit(x[other], [LABELS[i] for i in other]).predict_proba(queries[order])
    assert np.array_equal(answers, wanted[order])


def test_options_of_the_algorithm_can_be_overridden(maml_run: Path) -> None:
    few = FewShotClassifier(maml_run, device="cpu", options={"eval_inner_steps": 0})
    few.fit(tensors(EQUAL), EQUAL)
    assert few._fitted.model.learner.config.eval_inner_steps == 0
    for options, words in (
        ({"inner_stepz": 1}, "no option 'inner_stepz'"),
        ([1], "options cannot"),
    ):
        with pytest.raises(OptionError, match=words):
            few.set_params(options=options).fit(tensors(EQUAL), EQUAL)


def test_more_classes_than_a_head_has_are_refused(maml_run: Path) -> None:
    labels = ["a", "b", "c", "d"]
    with pytest.raises(OptionError, match="head has 3 outputs, but the task has 4 classes"):
        FewShotClassifier(maml_run, device="cpu").fit(tensors(LABELS)[:4], labels).predict(
            tensors(["bar"])
        )


def test_unknown_and_regression_models_are_refused(sinusoid_run: Path) -> None:
    with pytest.raises(UnknownNameError, match="no pretrained model named 'nothing'"):
        FewShotClassifier("nothing").fit(tensors(EQUAL), EQUAL)
    with pytest.raises(OptionError, match="is a regression model"):
        FewShotClassifier(sinusoid_run).fit(tensors(EQUAL), EQUAL)


def test_an_unknown_device_is_refused(protonet_run: Path) -> None:
    with pytest.raises(OptionError, match="there is no device 'abacus'"):
        FewShotClassifier(protonet_run, device="abacus").fit(tensors(EQUAL), EQUAL)


def test_it_must_be_fitted_first(protonet_run: Path) -> None:
    with pytest.raises(OptionError, match="no labelled examples yet") as caught:
        FewShotClassifier(protonet_run).predict(tensors(["bar"]))
    assert caught.value.hint == "call fit first"


@pytest.mark.parametrize("value", ["no", 2, 0])
def test_invert_is_a_truth_value(protonet_run: Path, value: Any) -> None:
    with pytest.raises(OptionError, match="invert cannot be"):
        FewShotClassifier(protonet_run, invert=value).fit(tensors(EQUAL), EQUAL)


def test_blank_pictures_and_contradictions_are_told_of(protonet_run: Path) -> None:
    classifier, x = FewShotClassifier(protonet_run, device="cpu"), tensors(LABELS).float() / 255
    with pytest.warns(DataWarning, match="1 of 7 labelled examples are blank"):
        classifier.fit(torch.cat([x[:6], torch.zeros(1, 1, 28, 28)]), LABELS)
    classifier.fit(x, LABELS)
    with pytest.warns(DataWarning, match="7 of 7 queries are blank"):
        classifier.predict(x / 255)
    with pytest.warns(DataWarning, match="one example has both labels 'bar' and 'dot'"):
        classifier.fit(torch.cat([x, x[:1]]), [*LABELS, "dot"])


def test_big_endian_arrays(protonet_run: Path) -> None:
    classifier, x = FewShotClassifier(protonet_run, device="cpu"), tensors(LABELS).float() / 255
    usual = classifier.fit(x, LABELS).predict_proba(x)
    assert np.array_equal(classifier.predict_proba(x.numpy().astype(">f4")), usual)


def test_unusable_examples_and_labels_are_refused(protonet_run: Path, tmp_path: Path) -> None:
    classifier = FewShotClassifier(protonet_run, device="cpu")
    x = tensors(LABELS)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    cases: list[tuple[Any, Any, str]] = [
        (x, ["a"] * 7, r"only one class \('a'\)"),
        (x, LABELS[:-1], "7 examples but 6 labels"),
        ([], [], "there are no examples"),
        (x[:, :, :20], LABELS, r"have shape \(7, 1, 20, 28\), but .* takes \(N, 1, 28, 28\)"),
        (x[:, 0], LABELS, r"have shape \(7, 28, 28\)"),
        (torch.tensor(5.0), LABELS, r"have shape \(\)"),
        (torch.full((7, 1, 28, 28), 3.0), LABELS, "values from 3 to 3; images have 0 to 1"),
        (torch.full((7, 1, 28, 28), float("nan")), LABELS, "values from nan to nan"),
        (x.long(), LABELS, r"torch\.int64"),
        (list(x), LABELS, "list of tensors or arrays"),
        (list(x.numpy()), LABELS, "list of tensors or arrays"),
        (np.array(["a"] * 7), LABELS, "there is no file a"),
        (np.array([None] * 7), LABELS, "cannot be examples"),
        (x.to_sparse(), LABELS, "sparse"),
        (x.to("meta"), LABELS, "meta"),
        (x.to(torch.complex64), LABELS, "complex"),
        (None, LABELS, "examples are a NoneType"),
        (3, LABELS, "examples are a int"),
        (x, None, "target y is None"),
        (x, "abcdefg", "labels are a str"),
        (x, np.array(3), "labels are a"),
        (x, set("abcdefg"), "labels are a set"),
        (x, [float("nan"), *LABELS[1:]], "a label is NaN"),
        ("a.png", LABELS, "one text or image, not a list"),
        (tmp_path / "a.png", LABELS, "one image, not a list"),
        (picture("bar", 0), LABELS, "one image, not a list"),
        ([tmp_path / "nothing.png"] * 7, LABELS, r"there is no file .*nothing\.png"),
        ([bad] * 7, LABELS, r"bad\.png is not an image"),
        (x, [["a"]] * 7, "labels cannot"),
        (x, [1j, 2j, 1j, 2j, 1j, 2j, 1j], "labels cannot"),
    ]
    for examples, labels, words in cases:
        with pytest.raises(DataError, match=words) as caught:
            classifier.fit(examples, labels)
        assert caught.value.hint, words


def test_a_failed_fit_keeps_the_previous_one(protonet_run: Path) -> None:
    classifier = FewShotClassifier(protonet_run, device="cpu").fit(tensors(LABELS), LABELS)
    before = classifier.predict_proba(tensors(LABELS))
    with pytest.raises(DataError):
        classifier.fit(tensors(LABELS[:3]), ["a"] * 3)
    assert np.array_equal(classifier.predict_proba(tensors(LABELS)), before)
