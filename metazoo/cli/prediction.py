"""`metazoo predict`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import click

from metazoo.cli import echo_json
from metazoo.cli.configured import algorithm_values
from metazoo.cli.process import use_float32
from metazoo.quoting import printable


@click.command()
@click.option(
    "--model",
    default="protonet.omniglot",
    show_default=True,
    help="zoo name, run folder, .safetensors file or address",
)
@click.option(
    "--support",
    required=True,
    type=click.Path(path_type=Path),
    help="folder with a folder of images for each class",
)
@click.option(
    "--query",
    required=True,
    type=click.Path(path_type=Path),
    help="image, or folder of images, to classify",
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
@click.option("--csv", "as_csv", is_flag=True, help="print CSV: file, label, probability")
def predict(
    model: str,
    support: Path,
    query: Path,
    invert: bool | None,
    changes: tuple[str, ...],
    device: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify images, given a few labelled ones.

    The folder --support holds a folder for each class, with one to twenty images in it. The names
    of these folders are the labels.
    """
    if as_json and as_csv:
        raise click.UsageError("choose --json or --csv, not both", click.get_current_context())
    from metazoo.classifier import FewShotClassifier
    from metazoo.image_folders import query_images, support_images
    from metazoo.zoo.find import find

    use_float32()
    source = find(model)
    values = algorithm_values(source.blueprint.algorithm, changes)
    classifier = FewShotClassifier(source, device=device, invert=invert, **values)
    labelled = [(path, name) for name, paths in support_images(support) for path in paths]
    classifier.fit([path for path, _ in labelled], [name for _, name in labelled])
    files = query_images(query)
    probabilities = classifier.predict_proba(files)
    _print(files, classifier.classes_, probabilities, as_json, as_csv)


def _print(
    files: list[Path], classes: list[Any], probabilities: Any, as_json: bool, as_csv: bool
) -> None:
    answers = [(str(file), classes[row.argmax()], row) for file, row in zip(files, probabilities)]
    if as_json:
        echo_json(
            [
                {"file": file, "label": label, "probabilities": dict(zip(classes, map(float, row)))}
                for file, label, row in answers
            ]
        )
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("file", "label", "probability"))
        for file, label, row in answers:
            writer.writerow((printable(file), printable(label), f"{row.max():.4f}"))
    else:
        from metazoo.cli.tables import table

        rows = [(file, label, f"{row.max():.1%}") for file, label, row in answers]
        click.echo(table(("file", "label", "probability"), rows))
