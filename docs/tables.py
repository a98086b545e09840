"""Write the tables of the docs from the code, the model cards and recorded results.

`python docs/tables.py` writes them. With `--check` it only compares, and exits with 1 if a page is stale.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from metazoo import options
from metazoo.base.recipe import Recipe
from metazoo.cli.tables import mode_text, task_text, value_text
from metazoo.plugins.registry import Entry, registry
from metazoo.zoo.find import find

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Json = dict[str, Any]

SPLITS = {
    "Vinyals' split: 423 test characters, 1,692 classes with rotations": {"vinyals"},
    "Lake's evaluation alphabets: 659 test characters, 2,636 classes with rotations": {
        "lake",
        "small1",
        "small2",
    },
}

# Data sets of the models over frozen encoders.
ENCODED = {
    "caltech101": "Photos: 20 test classes of objects of Caltech-101",
    "clinc150": "Texts: 50 test intents of CLINC150 (the first published fold)",
}

# Mean accuracies of papers in the order of TASKS, followed by the models to compare with them.
TASKS = ("5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot")
PUBLISHED: list[tuple[str, dict[str, tuple[float, ...]], list[str]]] = [
    (
        "inductive",
        {"ProtoNet, Snell et al. 2017": (98.8, 99.7, 96.0, 98.9)},
        ["protonet.omniglot", "protonet.omniglot_wide", "protonet.omniglot_large"],
    ),
    (
        "inductive",
        {"Matching Networks, Vinyals et al. 2016": (98.1, 98.9, 93.8, 98.5)},
        ["matching.omniglot"],
    ),
    (
        "transductive",
        {
            "MAML, Finn et al. 2017": (98.7, 99.9, 95.8, 98.9),
            "MAML++, Antoniou et al. 2019": (99.5, 99.9, 97.7, 99.3),
        },
        ["maml.omniglot_*"],
    ),
]

# Errors in percent: trained on the full background set, and on a minimal one.
CHALLENGE = [
    ("people, reported by Lake et al. 2019 (arXiv:1902.03477)", "4.5", ""),
    ("BPL, reported by Lake et al. 2019", "3.3", "4.2"),
    ("Siamese network, Koch et al. 2015 (40 alphabets, affine distortions)", "8.0", ""),
    ("plain convolutional network, Lake et al. 2019", "13.5", "23.2"),
    ("ProtoNet, Lake et al. 2019", "13.7", "30.1"),
]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def read(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8"))


def cards(dataset: str | None = None, splits: Iterable[str] | None = None) -> list[Json]:
    """Return the cards of the built-in models, of one data set and of some of its splits."""
    found = [read(path) for path in sorted((ROOT / "metazoo" / "pretrained").glob("*.json"))]
    return [
        card
        for card in found
        if dataset in (None, card["dataset"])
        and (splits is None or card["dataset_options"]["split"] in splits)
    ]


def figure(result: Json) -> str:
    """Return a mean and its interval, without the unit."""
    return value_text(result).removesuffix(" %")


def results() -> str:
    """Return the tables of the README: the accuracy of every built-in model."""
    parts = [
        f"**{title}**\n\n{accuracy_table(cards(dataset))}" for dataset, title in ENCODED.items()
    ] + [
        f"**Omniglot, {title}**\n\n{accuracy_table(cards('omniglot', splits))}"
        for title, splits in SPLITS.items()
    ]
    rows = [
        (f"`{card['name']}`", task_text(result), steps_of(card, result), figure(result))
        for card in cards("sinusoid")
        for result in card["results"]
    ]
    header = ("model", "task", "inner steps", "mean squared error")
    return "\n\n".join([*parts, "**Sinusoids**", table(header, rows)])


def steps_of(card: Json, result: Json) -> int:
    """Return the inner steps with which a result was measured."""
    usual = find(card["name"]).blueprint.algorithm_options
    return {**usual, **result.get("options", {})}["eval_inner_steps"]


def accuracy_rows(chosen: Iterable[Json]) -> dict[tuple[str, str], dict[str, str]]:
    """Return figures by task for each model and mode; `NAME_5w1s`, `NAME_20w1s`, ... are one model."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for card in chosen:
        family = re.sub(r"_\d+w\d+s$", "_*", card["name"])
        within = " in an alphabet" if card["dataset_options"].get("within_alphabet") else ""
        for result in card["results"]:
            task = task_text(result) + ("" if "protocol" in result else within)
            rows.setdefault((family, mode_text(result)), {})[task] = figure(result)
    return rows


def accuracy_table(chosen: Iterable[Json]) -> str:
    """Return a row for each model and mode, a column for each task."""
    rows = accuracy_rows(chosen)
    found = {task for row in rows.values() for task in row}
    tasks = sorted(found, key=lambda task: (not task[0].isdigit(), len(task), task))
    cells = [
        (f"`{family}`", *(row.get(task, "") for task in tasks), mode)
        for (family, mode), row in rows.items()
    ]
    return table(("model", *tasks, "mode"), cells)


def against_papers() -> str:
    """Return the figures of papers above those of the models on Vinyals' split."""
    ours = accuracy_rows(cards("omniglot", {"vinyals"}))
    rows: list[Sequence[Any]] = []
    for mode, papers, families in PUBLISHED:
        rows += [(name, *figures, mode) for name, figures in papers.items()]
        for family in families:
            found = ours.get((family, mode), {})
            rows.append((f"`{family}`", *(found.get(task, "") for task in TASKS), mode))
    return table(("model", *TASKS, "mode"), rows)


def challenge() -> str:
    """Return errors on the one-shot challenge: published ones, and those of the models on Lake's splits."""
    rows = list(CHALLENGE)
    for card in cards("omniglot"):
        for result in card["results"]:
            if result.get("protocol") == "one-shot-challenge":
                error = f"{100 * (1 - result['mean']):.2f} ± {100 * result['interval']:.2f}"
                full = card["dataset_options"]["split"] == "lake"
                rows.append((f"`{card['name']}`", *((error, "") if full else ("", error))))
    return table(("model", "full background set", "minimal background set"), rows)


def sinusoids() -> str:
    """Return errors on 5-shot sinusoids after 1, 5 and 10 inner steps: published ones, and ours."""
    rows: list[Sequence[Any]] = [("MAML, Finn et al. 2017", 0.67, 0.38, 0.35)]
    for card in cards("sinusoid"):
        found = {steps_of(card, r): figure(r) for r in card["results"] if r["shots"] == 5}
        rows.append((f"`{card['name']}`", *(found.get(steps, "") for steps in (1, 5, 10))))
    return table(("model", "1 step", "5 steps", "10 steps"), rows)


def digits() -> str:
    """Return the accuracy of the Omniglot models on MNIST."""
    found: dict[str, dict[str, str]] = {}
    for row in read(RESULTS / "mnist.json")["results"]:
        found.setdefault(row["model"], {})[task_text(row)] = figure(row)
    tasks = list(next(iter(found.values())))
    rows = [(f"`{model}`", *(row[task] for task in tasks)) for model, row in found.items()]
    return table(("model", *tasks), rows)


def caltech() -> str:
    """Return the accuracy of every algorithm on the reduced Caltech-101, and the commands."""
    records = sorted(
        map(read, RESULTS.glob("caltech-*.json")),
        key=lambda record: (backbone_of(record["rows"][0]), record.get("from_baseline") or 0),
    )
    rows = dict.fromkeys(row for record in records for row in caltech_rows(record))
    header = ("backbone", "algorithm", "5-way 1-shot", "5-way 5-shot", "mode")
    return "\n\n".join([table(header, rows), caltech_commands(records)])


def backbone_of(row: Json) -> str:
    return row["model"].partition(".")[2]


def start_of(record: Json, algorithm: str) -> str:
    """Return ` from baseline` if the algorithm started from the backbone of `baseline`."""
    started = record.get("from_baseline") and not algorithm.startswith("baseline")
    return " from `baseline`" if started else ""


def caltech_rows(record: Json) -> list[tuple[str, ...]]:
    """Return a row for each algorithm of a record."""
    found: dict[str, dict[int, Json]] = {}
    for row in record["rows"]:
        found.setdefault(row["algorithm"], {})[row["shots"]] = row
    lines = []
    for name, rows in found.items():
        first = next(iter(rows.values()))
        few = "" if first["tasks"] == 1000 else f", {first['tasks']} tasks"
        cells = [figure(rows[shots]) if shots in rows else "" for shots in (1, 5)]
        backbone = backbone_of(first) + start_of(record, name)
        lines.append((backbone, f"`{name}`", *cells, mode_text(first) + few))
    return lines


def caltech_commands(records: Iterable[Json]) -> str:
    """Return the command of each record, its machine and the commits it was trained at."""
    rows = []
    for record in records:
        measured = ", ".join(dict.fromkeys(row[0] for row in caltech_rows(record)))
        commits = ", ".join(dict.fromkeys(row["commit"][:10] for row in record["rows"]))
        rows.append((measured, f"`{record['command']}`", record["machine"], commits))
    return table(("rows", "command", "machine", "commits"), rows)


def practitioner() -> str:
    """Return a table for each data set of accuracies beside class means and logistic regression."""
    rows = read(RESULTS / "practitioner.json")["results"]["practitioner"]["rows"]
    titles = dict.fromkeys(row["part"].rpartition(", ")[0] for row in rows)
    return "\n\n".join(f"**{title}**\n\n{_beside(title, rows)}" for title in titles)


def _beside(title: str, rows: Iterable[Json]) -> str:
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["part"].rpartition(", ")[0] == title:
            half = (row["high"] - row["low"]) / 2
            task = row["part"].rpartition(", ")[2]
            found.setdefault(row["way"], {})[task] = f"{row['median']:.1f} ± {half:.1f}"
    tasks = list(dict.fromkeys(task for figures in found.values() for task in figures))
    cells = ((way, *(figures.get(task, "") for task in tasks)) for way, figures in found.items())
    return table(("way", *tasks), cells)


def soak() -> str:
    """Return what the soak found, the command, and the machine."""
    record = read(RESULTS / "soak.json")
    rows = [
        (
            row["what"],
            *(f"{row[key]:,}" for key in ("inputs", "answers", "errors", "faults")),
            f"{row['seconds']:.2f} s",
            f"{row['megabytes']:.0f} MiB",
        )
        for row in record["rows"]
    ]
    header = ("what", "inputs", "answers", "errors", "faults", "longest", "most memory")
    about = ", ".join((record["date"], f"commit {record['commit'][:10]}", record["machine"]))
    return f"{table(header, rows)}\n\n`{record['command']}`, {about}."


def commands() -> str:
    """Return how each built-in model was trained."""
    rows = []
    for card in cards():
        t = card["training"]
        commit = (t["commit"] or "not known")[:10]
        rows.append(
            (
                f"`{card['name']}`",
                f"`{t['command']}`",
                t["best_step"],
                f"{t['seconds']:.0f} s",
                t["machine"],
                commit,
            )
        )
    return table(("model", "command", "best step", "time", "machine", "commit"), rows)


def reference() -> str:
    """Return docs/algorithms.md whole."""
    shelves: list[tuple[str, Sequence[Entry[Any]], str]] = [
        ("Algorithms", registry().algorithms, ""),
        ("Data sets", registry().datasets, "data-"),
        ("Backbones", registry().backbones, "backbone-"),
    ]
    parts = [
        "# Options",
        "Every option of `metazoo train`. `metazoo train ALGORITHM --dataset NAME --help` prints the same.\n"
        "`python docs/tables.py` writes this page from the `Config` classes.",
        "## Training",
        "These options are common to all algorithms. Some algorithms and data sets change a default; their sections say which.",
        option_table(Recipe),
    ]
    for title, entries, prefix in shelves:
        parts.append(f"## {title}")
        for entry in entries:
            if entry.plugin.distribution == "metazoo":
                parts += reference_entry(entry, prefix)
    return "\n\n".join(parts) + "\n"


def reference_entry(entry: Entry[Any], prefix: str) -> list[str]:
    """Return the section of one algorithm, data set or backbone."""
    parts = [f"### {entry.name}", inspect.cleandoc(entry.value.__doc__ or "")]
    recipe = getattr(entry.value, "recipe", {})
    if recipe:
        changed = (f"`--{name.replace('_', '-')} {value}`" for name, value in recipe.items())
        parts.append(f"Default training options: {', '.join(changed)}.")
    return [*parts, option_table(entry.value.Config, prefix)]


def option_table(config: type, prefix: str = "") -> str:
    """Return the options of a Config class."""
    rows = []
    for option in options.read(config):
        meaning, _, shown = option.help.partition("  [default: ")
        default = (
            shown.removesuffix("]") if option.default is None and shown else str(option.default)
        )
        flag = f"`--{prefix}{option.name.replace('_', '-')}`"
        rows.append((flag, option.expects.replace("|", "\\|"), default, meaning))
    return table(("option", "value", "default", "meaning"), rows) if rows else "No options."


def filled(document: str, name: str, text: str) -> str:
    """Return a document with a text between the markers of that name."""
    before, start, rest = document.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    return f"{before}{start}{text}\n{end}{after}"


def documents() -> dict[Path, str]:
    """Return what every page with tables should hold."""
    pages = {ROOT / "docs" / "algorithms.md": reference()}
    for path, makers in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        for maker in makers:
            text = filled(text, maker.__name__, maker())
        pages[ROOT / path] = text
    return pages


PAGES: dict[str, list[Callable[[], str]]] = {
    "README.md": [results],
    "docs/reliability.md": [soak],
    "docs/results.md": [
        against_papers,
        challenge,
        sinusoids,
        digits,
        caltech,
        practitioner,
        commands,
    ],
}


def main() -> int:
    pages = documents()
    stale = [path for path in pages if path.read_text(encoding="utf-8") != pages[path]]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(pages[path], encoding="utf-8")
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is stale; run `python docs/tables.py`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
