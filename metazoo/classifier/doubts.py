"""What to warn of in labelled examples and queries."""

from __future__ import annotations

from metazoo.classifier import models
from metazoo.classifier.fitted import Fitted
from metazoo.classifier.looks import opinion
from metazoo.classifier.models import Model
from metazoo.classifier.support import Examples
from metazoo.errors import MetazooError
from metazoo.plugins.registry import registry


def doubts(state: Fitted) -> list[str]:
    """Return what to warn of in labelled examples and the model that was fitted to them."""
    model, support, left_out = state.model, state.support, state.measured.left_out
    said = support.contradictions()
    counts = [support.labels.count(state.classes[i]) for i in state.head.seen.tolist()]
    if model.learner.equal_shots and min(counts) < max(counts):
        said.append(
            f"the classes have from {min(counts)} to {max(counts)} examples, and "
            f"'{model.blueprint.algorithm}' answers less well then; "
            "give each the same number, or use protonet"
        )
    said += opinion(model, support.pictures, "labelled examples")
    if left_out.near_chance:
        said.append(
            f"only {left_out.correct} of {left_out.measured} labelled examples are classified "
            f"correctly by the others (guessing: {left_out.chance:.0%}), and new examples hardly "
            f"better{_instead(model)}"
        )
    return said


def doubts_of_queries(state: Fitted, queries: Examples) -> list[str]:
    """Return what to warn of in queries."""
    model = state.model
    said = opinion(model, queries.pictures, "queries", state.support.pictures)
    if model.learner.transductive and len(queries):
        what = f"each answer depends on all {len(queries)} queries"
        if len(queries) == 1:
            what = "its answer to a single query may be no better than guessing"
        said.append(f"'{model.name}' is transductive: {what}")
    return said


def _instead(model: Model) -> str:
    """Return what a model was trained on, and what to try instead."""
    better = {"image": models.PHOTOS, "text": models.TEXTS}.get(model.kind, model.name)
    hint = "check the labels, or give more examples"
    if better != model.name:
        hint = f"try model='{better}' (`metazoo predict --model {better}`)"
    dataset = model.blueprint.dataset
    return f"; '{model.name}' learned {_contents(dataset)}; {hint}" if dataset else f"; {hint}"


def _contents(dataset: str) -> str:
    """Return a data set in words, as "omniglot (handwritten characters)"."""
    try:
        about = registry().dataset(dataset).summary
    except MetazooError:  # a model can be used without the plugin of its data
        return dataset
    about = about.partition(",")[0].partition(".")[0]
    return f"{dataset} ({about[:1].lower()}{about[1:]})" if about else dataset
