"""`metazoo predict`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from metazoo.cli.answers import SUFFIXES
from metazoo.cli.configured import algorithm_values
from metazoo.cli.numbers import Number
from metazoo.cli.process import use_float32
from metazoo.errors import DataError, OptionError
from metazoo.quoting import printable

if TYPE_CHECKING:
    from metazoo.classifier import FewShotClassifier
    from metazoo.cli.answers import Answer, Output
    from metazoo.cli.queries import Queries
    from metazoo.tables import Columns

NOUNS = {"file": "images", "text": "texts", "row": "rows of numbers"}
AT_ONCE = 256  # queries in a batch
TABLE = ".csv, .tsv or .jsonl"


@click.command()
@click.option(
    "--support",
    type=click.Path(path_type=Path),
    help=f"labelled examples: a folder with a folder of images for each class, or a {TABLE} file",
)
@click.option(
    "--query",
    help=f"what to classify: an image, a folder of images, a {TABLE} file, a .txt file with a text "
    "on each line, or - for such lines on stdin",
)
@click.option(
    "--model",
    help="zoo name, ALGORITHM@ENCODER, run folder, .safetensors file, address, or what --save wrote  "
    "[default: one for photos, texts or numbers, as the examples are]",
)
@click.option("--label-column", default="", help="column of the labels  [default: guessed]")
@click.option("--text-column", default="", help="column of the texts  [default: guessed]")
@click.option("--path-column", default="", help="column of the images' files  [default: guessed]")
@click.option(
    "--names/--no-names",
    "use_names",
    default=True,
    help="use the names of classes as evidence, where the model can  [default: names]",
)
@click.option("--reject", is_flag=True, help="give no label to what belongs to no class")
@click.option(
    "--explain",
    type=Number(1),
    metavar="N",
    help="show the N labelled examples that are nearest to each query",
)
@click.option(
    "--save",
    "saved",
    type=click.Path(path_type=Path),
    help="write the fitted classifier to a .safetensors file, for --model",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="write the answers to a .csv or .jsonl file; after a kill, the same command continues it",
)
@click.option(
    "--invert/--no-invert", default=None, help="swap dark and light  [default: as in training]"
)
@click.option(
    "-o",
    "--option",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="override an option of the algorithm",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--json", "as_json", is_flag=True, help="print JSON, with the probability of every class"
)
@click.option("--csv", "as_csv", is_flag=True, help="print CSV: file (or text), label, probability")
def predict(
    support: Path | None,
    query: str | None,
    model: str | None,
    saved: Path | None,
    out: Path | None,
    as_json: bool,
    as_csv: bool,
    **settings: Any,
) -> None:
    """Classify images, texts or rows of numbers, given a few labelled ones.

    \b
    metazoo predict --support photos/ --query new/
    metazoo predict --support labelled.csv --query new.csv --reject
    metazoo predict --support labelled.csv --save intents.safetensors
    cat new.txt | metazoo predict --model intents.safetensors --query - --csv

    One to twenty examples of each class suffice. The folders in --support name the classes of
    images; a table has a column of labels and one of texts or files, or columns of numbers.
    """
    _check(support, query, model, saved, out, as_json, as_csv, settings["changes"])
    from metazoo import distributed
    from metazoo.cli.queries import STDIN, WHAT, unlabelled
    from metazoo.tables import Columns

    use_float32()
    columns = Columns(
        **{name: settings.pop(f"{name}_column") for name in ("label", "text", "path")}
    )
    explain = settings.pop("explain")
    with distributed.joined():
        classifier = _classifier(support, model, columns, **settings)
        if saved is not None and distributed.first():
            classifier.save(saved)
        if query is None:
            return
        if query == STDIN and distributed.size() > 1:
            raise OptionError("processes cannot share stdin", "write the texts to a .txt file")
        with unlabelled(query, columns) as queries:
            _say(queries.said)
            if WHAT[classifier.kind] != queries.what:
                raise DataError(
                    f"--query {query} holds {NOUNS[queries.what]}, and '{classifier.model_}' takes "
                    f"{NOUNS[WHAT[classifier.kind]]}",
                    "give other queries, or another --model",
                )
            fingerprint = f"{classifier.fingerprint()} {query} {explain}"
            output, done = _output(queries.what, explain, as_json, as_csv, out, fingerprint)
            _answer(classifier, queries, explain or 0, output, done)


def _check(
    support: Path | None,
    query: str | None,
    model: str | None,
    saved: Path | None,
    out: Path | None,
    as_json: bool,
    as_csv: bool,
    changes: tuple[str, ...],
) -> None:
    if as_json + as_csv + (out is not None) > 1:
        raise click.UsageError("choose one of --json, --csv and --out", click.get_current_context())
    if out is not None and out.suffix not in SUFFIXES:
        raise OptionError(
            f"--out {out} ends in neither {' nor '.join(SUFFIXES)}", "choose one of these"
        )
    if changes and model is None:
        raise OptionError("-o needs a model whose option it sets", "name one with --model")
    if support is None and (model is None or query is None):
        raise click.UsageError("Missing option '--support'", click.get_current_context())
    if query is None and saved is None:
        raise click.UsageError("Missing option '--query'", click.get_current_context())


def _classifier(
    support: Path | None,
    model: str | None,
    columns: Columns,
    use_names: bool,
    reject: bool,
    invert: bool | None,
    changes: tuple[str, ...],
    device: str,
) -> FewShotClassifier:
    """Return a fitted classifier, and say which model it uses and how good it seems."""
    from metazoo.classifier import FewShotClassifier
    from metazoo.cli.queries import labelled
    from metazoo.zoo.find import find

    rejecting: Literal["auto"] | None = "auto" if reject else None
    if support is None:
        return _saved(model, changes, invert, device).set_params(reject=rejecting)
    source = None if model is None else find(model)
    examples, labels, said = labelled(support, columns)
    _say(said)
    values = algorithm_values(source.blueprint.algorithm, changes) if source and changes else None
    classifier = FewShotClassifier(
        source or "auto",
        names="auto" if use_names else None,
        reject=rejecting,
        options=values,
        invert=invert,
        device=device,
    )
    classifier.fit(examples, labels)
    _say([f"the model is {classifier.model_}", *_quality(classifier)])
    return classifier


def _saved(
    model: str | None, changes: tuple[str, ...], invert: bool | None, device: str
) -> FewShotClassifier:
    """Return a classifier that --save wrote."""
    from metazoo.classifier import FewShotClassifier

    assert model is not None  # `_check` saw to it
    if changes or invert is not None:
        raise OptionError(
            "a saved classifier keeps its options", "leave out -o and --invert, or give --support"
        )
    return FewShotClassifier.load(model, device=device)


def _quality(classifier: FewShotClassifier) -> list[str]:
    """Return what the labelled examples tell about the classifier."""
    if classifier.loo_accuracy_ is None:
        return []
    return [
        f"by leave-one-out, {classifier.loo_accuracy_:.0%} of the labelled examples are classified "
        f"correctly (chance {1 / len(classifier.classes_):.0%})"
    ]


def _say(notes: Sequence[str]) -> None:
    from metazoo import distributed

    if distributed.first():
        for note in notes:
            click.echo(f"note: {printable(note)}", err=True)


def _output(
    what: str,
    explain: int | None,
    as_json: bool,
    as_csv: bool,
    out: Path | None,
    fingerprint: str,
) -> tuple[Output, int]:
    """Return where answers go, and how many are there already."""
    from metazoo import distributed
    from metazoo.cli.answers import AnswerFile, Csv, Json, Nowhere, Table

    output: Output = Nowhere()

    def begin() -> int:
        nonlocal output
        if out is not None:
            output = AnswerFile(out, what, bool(explain), fingerprint)
            return output.done
        output = Json(what) if as_json else (Csv if as_csv else Table)(what, bool(explain))
        return 0

    done = distributed.on_first(begin)
    return output, done


def _answer(
    classifier: FewShotClassifier, queries: Queries, explain: int, output: Output, done: int
) -> None:
    """Answer all queries but the first `done`; processes take batches in turns."""
    from metazoo import distributed
    from metazoo.cli.answers import batched
    from metazoo.cli.progress import measurement_progress

    rest = itertools.islice(queries.examples, done, None)
    # A transductive model must see all queries together.
    batches = batched(rest, sys.maxsize if classifier.transductive else AT_ONCE)
    if done:
        _say([f"{done} answers are there already"])
    with measurement_progress("predict") as watch:
        for group in batched(batches, distributed.size()):
            for answers in distributed.gathered(
                lambda batch: _answers(classifier, batch, explain), group
            ):
                output.write(answers)
                done += len(answers)
            watch(done, queries.count)
    output.close()


def _answers(
    classifier: FewShotClassifier, batch: Sequence[tuple[str, Any]], explain: int
) -> list[Answer]:
    from metazoo.cli.answers import Answer

    classes = classifier.classes_.tolist()
    found = classifier.answer([example for _, example in batch], explain)
    return [
        Answer(
            name,
            each.label,
            dict(zip(classes, each.probabilities.tolist())),
            [
                (near.example or f"example {near.index + 1}", near.label, near.similarity)
                for near in each.nearest
            ],
        )
        for (name, _), each in zip(batch, found)
    ]
