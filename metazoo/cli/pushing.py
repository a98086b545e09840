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
from metazoo.io.files import expand_user, json_text
from metazoo.quoting import shell_word, shown_address

# Licences that the Hub knows by these identifiers; any other is "other" there, with its name.
LICENCES = frozenset(
    [
        "mit",
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "gpl-3.0",
        "agpl-3.0",
        "lgpl-3.0",
        "mpl-2.0",
        "unlicense",
    ]
)
DESTINATIONS = "push to a folder, file:///FOLDER or hf://user/repo"


@click.command()
@click.argument("model")
@click.argument("destination")
@click.option("--private", is_flag=True, help="make the repository on the Hub private")
@click.option("--json", "as_json", is_flag=True, help="print the address as JSON")
def push(model: str, destination: str, private: bool, as_json: bool) -> None:
    """Publish a model, so that others can load it.

    MODEL is a zoo name, or a card (NAME.json) written by `metazoo export`. DESTINATION is a folder,
    file:///folder, or hf://user/repo on the Hugging Face Hub. A repository that does not exist is
    created.
    """
    card, weights = _read_model(model)
    scheme, colon, _ = destination.partition("://")
    if colon and scheme not in ("hf", "file"):
        raise OptionError(f"cannot push to '{destination}'", DESTINATIONS)
    if colon and scheme == "hf":
        where, address = _push_to_hub(destination, card, weights, private)
    elif private:
        raise OptionError(
            "--private applies to the Hub, not to a folder",
            "leave it out, or push to hf://user/repo",
        )
    else:
        folder = _folder_of(destination) if colon else Path(destination)
        folder = expand_user(folder, "the destination").absolute()
        where, address = _write_to_folder(folder, card, weights)
    name = card["name"]
    if as_json:
        echo_json({"name": name, "where": where, "address": address, "sha256": card["sha256"]})
    else:
        click.echo(f'{name} is in {where}\nmetazoo.load("{address}")')


def _read_model(model: str) -> tuple[dict[str, Any], bytes]:
    """Return a model's card, which names weights beside itself, and these weights, verified."""
    from metazoo.plugins import registry
    from metazoo.zoo.card import check_details, parse_card, read_card
    from metazoo.zoo.find import find

    if "://" in model:
        raise OptionError(
            f"'{shown_address(model)}' is an address", "push a zoo name, or a card that you have"
        )
    is_path = model.endswith(".json") or Path(model).exists()
    path = Path(model) if is_path else Path(registry().card(model).value)
    if path.is_dir():
        raise OptionError(
            f"{path} is a folder, not a card",
            f"`metazoo export {shell_word(path)} --name ALGORITHM.TAG --out DIR` makes a card",
        )
    if not path.exists():
        raise CheckpointError(
            f"there is no card {path}", "`metazoo export` writes one; for a zoo model give its name"
        )
    card = read_card(path)
    check_details(card, str(path))
    card |= {"weights": f"{card['name']}.safetensors"}
    # Parsed as a reader will parse it: a card that nobody could load is not pushed.
    card = parse_card(json_text(card).encode(), str(path))
    weights = find(path).contents
    return card | {"bytes": len(weights)}, weights


def _push_to_hub(
    destination: str, card: Mapping[str, Any], weights: bytes, private: bool
) -> tuple[str, str]:
    from metazoo.zoo import hub
    from metazoo.zoo.card import card_text

    place = hub.parse(destination)
    if place.name or place.revision:
        raise OptionError(
            f"'{destination}' names more than a repository", f"push to hf://{place.repo}"
        )
    address = f"hf://{place.repo}/{card['name']}{_pin(card)}"
    files = {card["weights"]: weights, f"{card['name']}.json": card_text(card)}
    url = hub.push(place.repo, files, _readme(card, address), private)
    return url, address


def _write_to_folder(folder: Path, card: Mapping[str, Any], weights: bytes) -> tuple[str, str]:
    from metazoo.zoo.export import write_model

    write_model(folder, card, weights, "push to another folder")
    return str(folder), f"{(folder / card['name']).as_uri()}.json{_pin(card)}"


def _pin(card: Mapping[str, Any]) -> str:
    return f"#sha256={card['sha256']}"


def _folder_of(url: str) -> Path:
    try:
        parts = urlsplit(url)
        path = url2pathname(parts.path)
        if "\0" in path:
            raise ValueError("it has a null byte")
    except ValueError as error:
        raise OptionError(f"'{url}' is not a valid address: {error}", DESTINATIONS) from error
    if parts.netloc not in ("", "localhost"):
        raise OptionError(f"'{url}' is a folder of another machine", DESTINATIONS)
    return Path(path)


def _readme(card: Mapping[str, Any], address: str) -> str:
    """Return the README of a model on the Hub."""
    known = ("algorithm", "backbone", "dataset", "data_licence")
    facts = "".join(f"- {key}: {card[key]}\n" for key in known if key in card)
    return f"""---
{_front_matter(card)}
---

# {card["name"]}

{card.get("summary") or "A few-shot learner."}

{facts}
| task | metric | mean ± 95 % interval | tasks | mode |
|---|---|---|---|---|
{_result_rows(card)}
```python
import metazoo  # pip install "metazoo[hub]"

model = metazoo.load("{address}")
logits = model(support_x, support_y, query_x)
```
"""


def _front_matter(card: Mapping[str, Any]) -> str:
    licence = re.sub(r"\s+", "-", str(card.get("licence", "not stated")).strip().lower())
    lines = [f"license: {licence}"]
    if licence in ("", "not-stated"):
        lines = []
    elif licence not in LICENCES:
        lines = ["license: other", f"license_name: {json.dumps(licence)}"]
    lines += ["library_name: metazoo", "tags:", "- few-shot-learning", "- pytorch"]
    return "\n".join(lines)


def _result_rows(card: Mapping[str, Any]) -> str:
    try:
        return "".join(
            f"| {task_text(result)} | {result['metric']} | {value_text(result)} "
            f"| {result['tasks']} | {mode_text(result)} |\n"
            for result in card["results"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the results of '{card['name']}' cannot be shown: {error!r}", "export the model again"
        ) from error
