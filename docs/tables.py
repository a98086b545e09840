"""Writes the tables of the docs from code, model cards and results: `python docs/tables.py`; with --check it only compares."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from metazoo import options
from metazoo.base.recipe import Recipe
from metazoo.cli.tables import mode_text, task_text, value_text
from metazoo.plugins.registry import registry
from metazoo.zoo.find import find

ROOT = Path(__file__).parents[1]


def cards() -> list[dict[str, Any]]:
    """Return the cards of the models that come with metazoo."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "metazoo" / "pretrained").glob("*.json"))
    ]


def results() -> str:
    """Return the tables of the pretrained models that come with metazoo."""
    parts = []
    for splits, title in SPLITS.items():
        chosen = [
            c
            for c in cards()
            if c["dataset"] == "omniglot" and c["dataset_options"]["split"] in splits
        ]
        parts += [f"**Omniglot, {title}**", omniglot_table(chosen)]
    lines = ["| model | task | inner steps | MSE |", "|---|---|---|---|"]
    for card in cards():
        for result in card["results"] if card["dataset"] == "sinusoid" else []:
            used = {**find(card["name"]).blueprint.algorithm_options, **result.get("options", {})}
            steps = used["eval_inner_steps"]
            lines.append(
                f"| `{card['name']}` | {task_text(result)} | {steps} | {value_text(result)} |"
            )
    return "\n\n".join([*parts, "**Sinusoids**", "\n".join(lines)])


SPLITS = {
    ("vinyals",): "Vinyals' split (423 test characters, with rotations 1,692 classes)",
    (
        "lake",
        "small1",
        "small2",
    ): "Lake's evaluation alphabets (659 test characters, with rotations 2,636 classes)",
}


def omniglot_rows(chosen: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, str]]:
    """Return cells by task, for each family (`name_5w1s`, `name_20w1s`, ... are one) and mode of evaluation."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for card in chosen:
        family = re.sub(r"_\d+w\d+s$", "_*", card["name"])
        within = " in an alphabet" if card["dataset_options"].get("within_alphabet") else ""
        for result in card["results"]:
            task = task_text(result) + ("" if "protocol" in result else within)
            rows.setdefault((family, mode_text(result)), {})[task] = value_text(
                result
            ).removesuffix(" %")
    return rows


def omniglot_table(chosen: list[dict[str, Any]]) -> str:
    """Return these cards' results, a row for each family and mode."""
    rows = omniglot_rows(chosen)
    tasks = sorted(
        {task for row in rows.values() for task in row},
        key=lambda t: (not t[0].isdigit(), len(t), t),
    )
    lines = ["| model | " + " | ".join(tasks) + " | |", "|---|" + "---|" * (len(tasks) + 1)]
    for (family, mode), row in rows.items():
        lines.append(f"| `{family}` | {' | '.join(row.get(task, '') for task in tasks)} | {mode} |")
    return "\n".join(lines)


# Mean accuracies of papers in the order of COLUMNS, and the families of ours that stand below them.
PUBLISHED = [
    (
        [("protonet, Snell et al. 2017", (98.8, 99.7, 96.0, 98.9))],
        ["protonet.omniglot", "protonet.omniglot_wide", "protonet.omniglot_large"],
        "inductive",
    ),
    (
        [("matching, Vinyals et al. 2016", (98.1, 98.9, 93.8, 98.5))],
        ["matching.omniglot"],
        "inductive",
    ),
    (
        [
            ("maml, Finn et al. 2017", (98.7, 99.9, 95.8, 98.9)),
            ("MAML++, Antoniou et al. 2019", (99.5, 99.9, 97.7, 99.3)),
        ],
        ["maml.omniglot_*"],
        "transductive",
    ),
]
COLUMNS = ("5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot")


def against_papers() -> str:
    """Return what papers report beside what the models on Vinyals' split reach."""
    ours = omniglot_rows(
        [
            c
            for c in cards()
            if c["dataset"] == "omniglot" and c["dataset_options"]["split"] == "vinyals"
        ]
    )
    lines = [f"| | {' | '.join(COLUMNS)} | |", "|---|---|---|---|---|---|"]
    for papers, families, mode in PUBLISHED:
        lines += [
            f"| {name} | {' | '.join(map(str, figures))} | {mode} |" for name, figures in papers
        ]
        for family in families:
            row = ours.get((family, mode), {})
            lines.append(
                f"| `{family}` | {' | '.join(row.get(task, '') for task in COLUMNS)} | {mode} |"
            )
    return "\n".join(lines)


# Errors in percent with the full background set and with a minimal one.
CHALLENGE = [
    ("people, as Lake et al. 2019 (arXiv:1902.03477) report", "4.5", ""),
    ("BPL, same", "3.3", "4.2"),
    ("Siamese network, Koch et al. 2015: 40 alphabets, affine distortions", "8.0", ""),
    ("plain convolutional network, Lake et al. 2019", "13.5", "23.2"),
    ("ProtoNet, same", "13.7", "30.1"),
]


def challenge() -> str:
    """Return the one-shot challenge: published errors, and those of the models on Lake's splits."""
    lines = ["| | full background set | minimal set |", "|---|---|---|"]
    lines += [f"| {name} | {full} | {minimal} |" for name, full, minimal in CHALLENGE]
    for card in cards():
        for result in card["results"]:
            if result.get("protocol") == "one-shot-challenge":
                error = f"{100 * (1 - result['mean']):.2f} ± {100 * result['interval']:.2f}"
                full = card["dataset_options"]["split"] == "lake"
                lines.append(
                    f"| `{card['name']}` | {error if full else ''} | {'' if full else error} |"
                )
    return "\n".join(lines)


def sinusoids() -> str:
    """Return the errors on 5-shot sinusoids after 1, 5 and 10 inner steps, published and ours."""
    steps = (1, 5, 10)
    lines = [
        f"| | {' | '.join(map(str, steps))} |",
        "|---|---|---|---|",
        "| MAML, Finn et al. 2017 | 0.67 | 0.38 | 0.35 |",
    ]
    for card in cards():
        if card["dataset"] == "sinusoid":
            usual = find(card["name"]).blueprint.algorithm_options
            found = {
                {**usual, **result.get("options", {})}["eval_inner_steps"]: value_text(result)
                for result in card["results"]
                if result["shots"] == 5
            }
            lines.append(
                f"| `{card['name']}` | {' | '.join(found.get(step, '') for step in steps)} |"
            )
    return "\n".join(lines)


def digits() -> str:
    """Return the models of Omniglot on MNIST, from what `metazoo eval --json` printed."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "mnist.json").read_text(encoding="utf-8"))[
        "results"
    ]
    tasks = list(dict.fromkeys(task_text(row) for row in rows))
    lines = ["| model | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [value_text(row).removesuffix(" %") for row in rows if row["model"] == model]
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def caltech() -> str:
    """Return every algorithm on the reduced Caltech-101, a row for each with each backbone and each start that was measured."""
    lines = ["| backbone | algorithm | 5-way 1-shot | 5-way 5-shot | |", "|---|---|---|---|---|"]
    commands, paths = [], (ROOT / "benchmarks" / "results").glob("caltech-*.json")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for record in sorted(
        records,
        key=lambda record: (
            record["rows"][0]["model"].partition(".")[2],
            record.get("from_baseline") or 0,
        ),
    ):
        trained = ", ".join(dict.fromkeys(row["commit"][:10] for row in record["rows"]))
        commands.append(f"`{record['command']}`, {record['machine']}, trained at commit {trained}.")
        for name in dict.fromkeys(row["algorithm"] for row in record["rows"]):
            rows = {row["shots"]: row for row in record["rows"] if row["algorithm"] == name}
            cells = [
                value_text(rows[shots]).removesuffix(" %") if shots in rows else ""
                for shots in (1, 5)
            ]
            first = next(iter(rows.values()))
            few = "" if first["tasks"] == 1000 else f", {first['tasks']} tasks"
            start = (
                " from `baseline`"
                if record.get("from_baseline") and not name.startswith("baseline")
                else ""
            )
            line = f"| {first['model'].partition('.')[2]}{start} | `{name}` | {' | '.join(cells)} | {mode_text(first)}{few} |"
            # The baselines are the same, however episodes begin.
            lines += [line] if line not in lines else []
    return "\n".join(lines) + "\n\n" + "\n".join(commands)


def benchmark(name: str) -> str:
    """Return what a benchmark of the suite found, or which command finds it."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: `make bench ARGS={name}`."
    record = json.loads(path.read_text(encoding="utf-8"))
    rows, parts = record["rows"], len({row["part"] for row in record["rows"]})
    lines = [f"| | | {record['unit']} | low to high | of ours | |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}x"
        median, low, high = (
            f"{row[key]:,.0f}" if row[key] >= 1000 else f"{row[key]:.4g}"
            for key in ("median", "low", "high")
        )
        lines.append(
            f"| {row['part']} | {row['way']} | {median} | {low} to {high} | {ratio} | {row['settings']} |"
        )
    if parts == 1:
        lines = ["|" + line.split("|", 2)[2] for line in lines]
    if all(row["ratio"] is None and not row["settings"] for row in rows):
        lines = [line.rsplit("|", 3)[0] + "|" for line in lines]
    facts = [
        f"Goal {g['goal']:.3g}x, {g['against']}: **{g['reached']:.3g}x**" for g in record["goals"]
    ]
    facts += [f"The same: {fact}" for fact in record["same"]]
    facts += [f"{note[0].upper()}{note[1:]}" for note in record["notes"]]
    facts += [f"Left out: {way}, {reason}" for way, reason in record["left_out"].items()]
    where = f"{record['processor']}, {record['machine']}, {record['threads']} threads"
    blocks = [
        f"{record['work'][0].upper()}{record['work'][1:]}.",
        "\n".join(lines),
        "\n".join(f"- {fact}." for fact in facts),
    ]
    blocks += [f"![{name}](images/{picture})" for picture in record["plots"]]
    return "\n\n".join(
        [
            *blocks,
            f"`{record['command']}`, {record['date']}, commit {(record['commit'] or 'not known')[:10]}; {where}.",
        ]
    )


def commands() -> str:
    """Return how each of these models was trained."""
    lines = [
        "| model | command | best step | time | machine | commit |",
        "|---|---|---|---|---|---|",
    ]
    for card in cards():
        t = card["training"]
        where = f"{t['seconds']:.0f} s | {t['machine']} | {(t['commit'] or 'not known')[:10]}"
        lines.append(f"| `{card['name']}` | `{t['command']}` | {t['best_step']} | {where} |")
    return "\n".join(lines)


def option_table(config: type, prefix: str = "", usual: dict[str, Any] | None = None) -> str:
    """Return the options of a Config class as a table."""
    lines = ["| option | takes | default | |", "|---|---|---|---|"]
    for option in options.read(config):
        default = (usual or {}).get(option.name, option.default)
        text = option.help.partition("  [default: ")
        shown = text[2].removesuffix("]") if default is None and text[2] else str(default)
        expects = option.expects.replace("|", "\\|")
        lines.append(
            f"| `--{prefix}{option.name.replace('_', '-')}` | {expects} | {shown} | {text[0]} |"
        )
    return "\n".join(lines) if len(lines) > 2 else "No options."


def reference() -> str:
    """Return docs/algorithms.md whole."""
    parts = [
        "# Options",
        "Written by `python docs/tables.py` from the Config classes; `metazoo train ALGORITHM --help` shows the same.",
    ]
    parts += [
        "## Training",
        "The same for every algorithm; their own defaults stand with them below.",
        option_table(Recipe),
    ]
    for title, entries, prefix in (
        ("Algorithms", registry().algorithms, ""),
        ("Data sets", registry().datasets, "data-"),
        ("Backbones", registry().backbones, "backbone-"),
    ):
        parts.append(f"## {title}")
        for entry in entries:
            if entry.plugin.distribution != "metazoo":
                continue
            parts += [f"### {entry.name}", " ".join((entry.value.__doc__ or "").split())]
            recipe = dict(getattr(entry.value, "recipe", {}))
            if recipe:
                changed = ", ".join(
                    f"`--{name.replace('_', '-')} {value}`" for name, value in recipe.items()
                )
                parts.append(f"Trains by default with {changed}.")
            parts.append(option_table(entry.value.Config, prefix))
    return "\n\n".join(parts) + "\n"


def filled(document: str, name: str, table: str) -> str:
    """Return a document with a table between its markers."""
    before, start, rest = document.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    return before + start + table + "\n" + end + after


def documents() -> dict[Path, str]:
    """Return what every document with tables should hold."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for table in (against_papers, challenge, sinusoids, digits, caltech, commands):
        page = filled(page, table.__name__, table())
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in re.findall(r"<!-- (\w+) -->", performance):
        performance = filled(performance, name, benchmark(name))
    return {
        ROOT / "docs" / "performance.md": performance,
        ROOT / "README.md": filled(
            (ROOT / "README.md").read_text(encoding="utf-8"), "results", results()
        ),
        ROOT / "docs" / "results.md": page,
        ROOT / "docs" / "algorithms.md": reference(),
    }


def main() -> int:
    stale = [
        path
        for path, text in documents().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)} is not what `python docs/tables.py` writes")
        else:
            path.write_text(documents()[path], encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
