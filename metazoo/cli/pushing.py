"""`metazoo push`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import click

from metazoo.cli import echo_json
from metazoo.cli.tables import mode_text, task_text, value_text
from metazoo.errors import CheckpointError, OptionError
from metazoo.io.files import write_atomically
from metazoo.plugins.registry import registry
from metazoo.zoo import hub
from metazoo.zoo.card import parse_card, read_card
from metazoo.zoo.export import check_free
from metazoo.zoo.find import weights_of

# The licences that the Hub knows by these words; any other is "other" there, with its name.
LICENCES = {
    "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense",
}  # fmt: skip


@click.command()
@click.argument("model")
@click.argument("destination")
@click.option("--private", is_flag=True, help="make the repository on the Hub private")
@click.option("--json", "as_json", is_flag=True, help="print where it is as JSON")
def push(model: str, destination: str, private: bool, as_json: bool) -> None:
    """Put a zoo model where others can load it.

    MODEL is a name of the zoo, or the card (NAME.json) that `metazoo export` wrote. DESTINATION is a folder, file:///folder,
    or hf://user/repo on the Hugging Face Hub, which is created if there is none.
    """
    card, weights = _packed(model)
    name, pin = card["name"], f"#sha256={card['sha256']}"
    files = {card["weights"]: weights, f"{name}.json": (json.dumps(card, indent=2) + "\n").encode()}
    scheme, colon, _ = destination.partition("://")
    if scheme == "hf" and colon:
        place = hub.parse(destination)
        if place.name or place.revision:
            raise OptionError(
                f"'{destination}' names more than a repository", f"push to hf://{place.repo}"
            )
        address = f"hf://{place.repo}/{name}{pin}"
        where = hub.push(place.repo, files, _readme(card, address), private)
    elif colon and scheme != "file":
        raise OptionError(
            f"'{destination}' cannot be pushed to",
            "push to a folder, file:///FOLDER or hf://user/repo",
        )
    else:
        if private:
            raise OptionError(
                "--private means nothing for a folder", "leave it out, or push to hf://user/repo"
            )
        folder = (_folder(destination) if colon else Path(destination)).expanduser().absolute()
        _write(folder, card, files)
        where, address = str(folder), f"{(folder / f'{name}.json').as_uri()}{pin}"
    if as_json:
        echo_json({"name": name, "where": where, "address": address, "sha256": card["sha256"]})
    else:
        click.echo(f'{name} is in {where}\nmetazoo.load("{address}")')


def _folder(url: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise OptionError(
            f"'{url}' is no address: {error}", "push to a folder, file:///FOLDER or hf://user/repo"
        ) from error
    if parts.netloc not in ("", "localhost"):
        raise OptionError(
            f"'{url}' is a folder of another machine",
            "push to a folder, file:///FOLDER or hf://user/repo",
        )
    return Path(url2pathname(parts.path))


def _packed(model: str) -> tuple[dict[str, Any], bytes]:
    """Return the card of a model, which names weights beside itself, and these weights, verified."""
    path = (
        Path(model)
        if model.endswith(".json") or Path(model).exists()
        else Path(registry().card(model).value)
    )
    if path.is_dir():
        raise OptionError(
            f"{path} is a folder, not a card",
            f"`metazoo export {path} --name ALGORITHM.TAG --out DIR` makes one",
        )
    if not path.exists():
        raise CheckpointError(
            f"there is no card {path}",
            "`metazoo export` writes one; a model of the zoo is given by its name",
        )
    card = read_card(path)
    _, weights = weights_of(card, path.parent)
    card |= {"weights": f"{card['name']}.safetensors", "bytes": len(weights)}
    # What could not be loaded is not pushed.
    return parse_card(json.dumps(card).encode(), str(path)), weights


def _write(folder: Path, card: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a model into a folder, or raise OptionError where another one of that name is there."""
    check_free(folder, card["name"], card["sha256"], "push to another folder")
    # The weights come first: whoever reads in between finds a card that does not fit, not a model that was never measured.
    for file, data in files.items():
        write_atomically(folder / file, data)


def _readme(card: Mapping[str, Any], address: str) -> str:
    """Return the page that shows a model on the Hub."""
    licence = re.sub(r"\s+", "-", str(card.get("licence", "not stated")).strip().lower())
    front = [f"license: {licence}"]
    if licence in ("", "not-stated"):
        front = []
    elif licence not in LICENCES:
        front = ["license: other", f"license_name: {json.dumps(licence)}"]
    front += ["library_name: metazoo", "tags:", "- few-shot-learning", "- pytorch"]
    facts = "".join(
        f"- {key}: {card[key]}\n"
        for key in ("algorithm", "backbone", "dataset", "data_licence")
        if key in card
    )
    try:
        rows = "".join(
            f"| {task_text(result)} | {result['metric']} | {value_text(result)} | {result['tasks']} | {mode_text(result)} |\n"
            for result in card["results"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the results of '{card['name']}' cannot be shown: {error!r}", "export the model again"
        ) from error
    return f"""---
{chr(10).join(front)}
---

# {card["name"]}

{card.get("summary") or "A few-shot learner."}

{facts}
| task | metric | mean ± 95 % interval | tasks | mode |
|---|---|---|---|---|
{rows}
```python
import metazoo  # pip install "metazoo[hub]"

model = metazoo.load("{address}")
logits = model(support_x, support_y, query_x)
```
"""
