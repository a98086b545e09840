"""`metazoo list`, `metazoo plugins` and `metazoo info`."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from metazoo.cli import echo_json
from metazoo.cli.tables import mode_text, table, task_text, value_text
from metazoo.errors import MetazooError
from metazoo.plugins.registry import Entry, registry
from metazoo.version import VERSION

KINDS = ("algorithms", "backbones", "datasets", "pretrained")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="print the list as JSON")
def list_(kind: str | None, as_json: bool) -> None:
    """List algorithms, backbones, data sets and pretrained models, each with the distribution it comes from."""
    found = {
        k: [_describe(k, entry) for entry in getattr(registry(), k)]
        for k in KINDS
        if kind in (None, k)
    }
    if as_json:
        echo_json(found)
    else:
        for k, items in found.items():
            rows = [(item["name"], item["summary"], item["from"]) for item in items]
            click.echo(table((k, "", "from"), rows) + "\n")
    _warn()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print the list as JSON")
def plugins(as_json: bool) -> None:
    """List plugins: distribution, version, and what they bring or why they do not work."""
    found = registry().plugins
    clashes = [
        {"kind": kind, "name": name, "claimed by": [plugin.owner for plugin in owners]}
        for kind, name, owners in registry().clashes()
    ]
    if as_json:
        listed = [
            {
                "name": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "target": p.target,
                "provides": p.provides,
                "problem": p.problem,
                "hint": p.hint,
            }
            for p in found
        ]
        echo_json({"plugins": listed, "clashes": clashes})
        return
    rows = []
    for p in found:
        brings = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in p.provides.items())
        rows.append(
            (
                p.name,
                p.owner,
                "FAILED" if p.problem else "works",
                f"{p.problem}{f' ({p.hint})' if p.hint else ''}" if p.problem else brings,
            )
        )
    click.echo(table(("plugin", "from", "state", "provides, or what is wrong"), rows))
    for clash in clashes:
        click.echo(
            f"clash: {clash['kind']} '{clash['name']}' is claimed by {' and '.join(clash['claimed by'])}"
        )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def info(as_json: bool) -> None:
    """Show versions, devices and the state of the kernels, which are built if they will be used and are not yet."""
    import platform

    import torch

    facts: dict[str, Any] = {
        "metazoo": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": [
            "cpu",
            *(
                f"cuda:{i} {torch.cuda.get_device_name(i)}"
                for i in range(torch.cuda.device_count())
            ),
        ],
        "threads": torch.get_num_threads(),
        "plugins": len(registry().plugins),
        "failed plugins": sum(p.problem is not None for p in registry().plugins),
        "kernels": _kernels(),
    }
    if as_json:
        echo_json(facts)
    else:
        facts["cuda"] = facts["cuda"] or "none: this torch is for CPUs alone"
        kernels = facts.pop("kernels")
        for name, value in {**facts, **_kernel_lines(kernels)}.items():
            click.echo(f"{name + ':':16}{', '.join(value) if isinstance(value, list) else value}")


def _kernels() -> dict[str, Any]:
    import dataclasses
    import warnings

    import torch

    from metazoo import kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kernels.KernelWarning)  # it is part of what is shown
        if kernels.mode() == "emulated" or torch.cuda.is_available():
            kernels.load()
    if kernels.mode() == "auto" and not torch.cuda.is_available():
        found = dataclasses.asdict(kernels.ahead_of_time())
        return {
            **found,
            "problem": "; ".join(filter(None, ["there is no CUDA device", found["problem"]])),
        }
    return dataclasses.asdict(kernels.status())


def _kernel_lines(found: dict[str, Any]) -> dict[str, str]:
    state = "loaded" if found["loaded"] else "not loaded"
    why = ", ".join(filter(None, [found["origin"] if found["loaded"] else "", found["problem"]]))
    lines = {"kernels": f"{found['mode']}, {state}{f': {why}' if why else ''}"}
    told = {
        "from": found["path"],
        "built": ", ".join(f"{k} {v}" for k, v in found["info"].items()),
        "hint": found["hint"],
    }
    return lines | {f"kernels {name}": value for name, value in told.items() if value}


def _describe(kind: str, entry: Entry[Any]) -> dict[str, str]:
    item = {"name": entry.name, "summary": "", "from": entry.plugin.owner}
    if kind == "pretrained":
        from metazoo.zoo.card import read_card

        try:
            card = read_card(entry.value)
            result = card["results"][0]
            item["summary"] = value_text(result)
            # Another's card may say less.
            with contextlib.suppress(KeyError, TypeError, AttributeError):
                where = f"{card['dataset']}, " if "dataset" in card else ""
                item["summary"] += f"  {where}{task_text(result)}, {mode_text(result)}"
        except (MetazooError, KeyError, IndexError, TypeError, ValueError) as error:
            item["summary"] = f"unusable card: {error}"
    else:
        item["summary"] = (entry.value.__doc__ or "").strip().split("\n")[0]
    return item


def _warn() -> None:
    """Say on stderr that some plugins do not work."""
    broken = [p.owner for p in registry().plugins if p.problem]
    if broken or registry().clashes():
        names = f" ({', '.join(sorted(set(broken)))})" if broken else ""
        click.echo(
            f"warning: some plugins do not work{names}; `metazoo plugins` says why", err=True
        )
