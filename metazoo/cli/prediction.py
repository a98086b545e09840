"""`metazoo predict`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import click

from metazoo.classifier import FewShotClassifier
from metazoo.cli import echo_json
from metazoo.cli.configured import algorithm_values
from metazoo.cli.precision import float32_is_float32
from metazoo.cli.tables import table
from metazoo.datasets.folder import query_images, support_images
from metazoo.zoo.find import find


@click.command()
@click.option(
    "--model",
    default="protonet.omniglot",
    show_default=True,
    help="name of the zoo, run folder, .safetensors file or address",
)
@click.option(
    "--support",
    required=True,
    type=click.Path(path_type=Path),
    help="folder with one folder of images a class",
)
@click.option(
    "--query",
    required=True,
    type=click.Path(path_type=Path),
    help="image, or folder of images, to classify",
)
@click.option(
    "--invert/--no-invert",
    default=None,
    help="swap dark and light  [default: as in the model's training]",
)
@click.option(
    "-o",
    "--option",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="set an option of the algorithm otherwise",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--json", "as_json", is_flag=True, help="print as JSON, with the probability of every class"
)
@click.option("--csv", "as_csv", is_flag=True, help="print as CSV: file, label, probability")
def predict(
    model: str, support: Path, query: Path, invert: bool | None, changes: tuple[str, ...], device: str, as_json: bool,
    as_csv: bool,
) -> None:  # fmt: skip
    """Classify images by a few labelled ones: one folder a class, one to twenty images in each."""
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other", click.get_current_context())
    float32_is_float32()
    source = find(model)
    values = algorithm_values(source.blueprint.algorithm, changes)
    classifier = FewShotClassifier(source, device=device, invert=invert, **values)
    labelled = [(path, name) for name, paths in support_images(support) for path in paths]
    classifier.fit([path for path, _ in labelled], [name for _, name in labelled])
    files = query_images(query)
    probabilities = classifier.predict_proba(files)
    best = probabilities.argmax(1)
    labels = [classifier.classes_[i] for i in best]
    if classifier.model.transductive and len(files) > 1:
        click.echo(
            f"note: '{model}' is transductive: it judges the {len(files)} images together", err=True
        )
    if as_json:
        echo_json(
            [
                {
                    "file": str(f),
                    "label": label,
                    "probabilities": dict(zip(classifier.classes_, map(float, row))),
                }
                for f, label, row in zip(files, labels, probabilities)
            ]
        )
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("file", "label", "probability"))
        writer.writerows(
            (str(f), label, f"{row.max():.4f}")
            for f, label, row in zip(files, labels, probabilities)
        )
    else:
        rows = [
            (str(f), label, f"{row.max():.1%}")
            for f, label, row in zip(files, labels, probabilities)
        ]
        click.echo(table(("file", "label", "probability"), rows))
