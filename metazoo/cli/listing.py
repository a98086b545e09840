"""`metazoo list`, `metazoo plugins` and `metazoo info`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from metazoo.cli import echo_json
from metazoo.cli.commands import plugin_commands, resolve
from metazoo.cli.tables import mode_text, table, task_text, value_text
from metazoo.errors import MetazooError, first_line
from metazoo.version import VERSION

if TYPE_CHECKING:
    from metazoo.plugins import Entry, Plugin

KINDS = ("algorithms", "backbones", "datasets", "pretrained")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="print the list as JSON")
def list_(kind: str | None, as_json: bool) -> None:
    """List algorithms, backbones, data sets and pretrained models, and the package of each."""
    from metazoo.plugins import registry

    wanted = (kind,) if kind else KINDS
    found = {k: [_describe(k, entry) for entry in getattr(registry(), k)] for k in wanted}
    if as_json:
        echo_json(found)
    else:
        for k, items in found.items():
            rows = [(item["name"], item["summary"], item["from"]) for item in items]
            click.echo(table((k, "", "from"), rows) + "\n")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print the list as JSON")
def plugins(as_json: bool) -> None:
    """List plugins, the package of each, and what it provides or why it does not work."""
    from metazoo.plugins import registry

    commands = _command_plugins()
    found = [*registry().plugins, *commands]
    clashes = [
        {"kind": kind, "name": name, "claimed by": [plugin.owner for plugin in owners]}
        for kind, name, owners in [*registry().clashes(), *_clashes(commands)]
    ]
    if as_json:
        echo_json({"plugins": [_facts(plugin) for plugin in found], "clashes": clashes})
        return
    rows = [_row(plugin) for plugin in found]
    click.echo(table(("plugin", "from", "state", "provides, or what is wrong"), rows))
    for clash in clashes:
        owners = " and ".join(clash["claimed by"])
        click.echo(f"clash: {clash['kind']} '{clash['name']}' is claimed by {owners}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def info(as_json: bool) -> None:
    """Show versions, devices and the state of the kernels.

    The kernels are built first if metazoo will use them and they are not built yet.
    """
    import platform

    import torch

    from metazoo.plugins import registry

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
        return
    facts["cuda"] = facts["cuda"] or "none: this is a CPU build of torch"
    kernels = facts.pop("kernels")
    for name, value in {**facts, **_kernel_lines(kernels)}.items():
        click.echo(f"{name + ':':16}{', '.join(value) if isinstance(value, list) else value}")


def _command_plugins() -> list[Plugin]:
    """Return a plugin for each command: it provides the command, or has the problem with it."""
    from metazoo.plugins import Plugin

    found = []
    for entry_points in plugin_commands().values():
        for entry_point in entry_points:
            plugin = Plugin.of(entry_point)
            try:
                resolve(entry_points)
                plugin.provides = {"commands": [entry_point.name]}
            except MetazooError as error:
                plugin.fail(error.message.rpartition("\n")[2], error.hint)
            found.append(plugin)
    return found


def _clashes(commands: list[Plugin]) -> list[tuple[str, str, list[Plugin]]]:
    """Return the commands that several plugins claim, in the form of `Registry.clashes`."""
    named: dict[str, list[Plugin]] = {}
    for plugin in commands:
        named.setdefault(plugin.name, []).append(plugin)
    return [("command", name, owners) for name, owners in named.items() if len(owners) > 1]


def _facts(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.target,
        "provides": plugin.provides,
        "problem": plugin.problem,
        "hint": plugin.hint,
    }


def _row(plugin: Plugin) -> tuple[str, str, str, str]:
    if plugin.problem:
        hint = f" ({plugin.hint})" if plugin.hint else ""
        return plugin.name, plugin.owner, "FAILED", f"{plugin.problem}{hint}"
    provides = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in plugin.provides.items())
    return plugin.name, plugin.owner, "works", provides


def _kernels() -> dict[str, Any]:
    import dataclasses
    import warnings

    import torch

    from metazoo import kernels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kernels.KernelWarning)  # its content is shown below
        if kernels.mode() == "emulated" or torch.cuda.is_available():
            kernels.load()
    if kernels.mode() == "auto" and not torch.cuda.is_available():
        found = dataclasses.asdict(kernels.ahead_of_time())
        problems = ["there is no CUDA device", found["problem"]]
        return {**found, "problem": "; ".join(filter(None, problems))}
    return dataclasses.asdict(kernels.status())


def _kernel_lines(found: dict[str, Any]) -> dict[str, str]:
    state = "loaded" if found["loaded"] else "not loaded"
    why = ", ".join(filter(None, [found["origin"] if found["loaded"] else "", found["problem"]]))
    lines = {"kernels": f"{found['mode']}, {state}{f': {why}' if why else ''}"}
    details = {
        "from": found["path"],
        "built": ", ".join(f"{k} {v}" for k, v in found["info"].items()),
        "hint": found["hint"],
    }
    return lines | {f"kernels {name}": value for name, value in details.items() if value}


def _describe(kind: str, entry: Entry[Any]) -> dict[str, str]:
    summary = _card_summary(entry) if kind == "pretrained" else entry.summary
    return {"name": entry.name, "summary": summary, "from": entry.plugin.owner}


def _card_summary(entry: Entry[Any]) -> str:
    from metazoo.zoo.card import check_details, read_card

    try:
        card = read_card(entry.value)
        check_details(card, str(entry.value))
        result = card["results"][0]
        summary = value_text(result)
    except (MetazooError, KeyError, IndexError, TypeError, ValueError) as error:
        return f"unusable card: {first_line(error)}"
    # Cards of other tools may say less.
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        where = f"{card['dataset']}, " if "dataset" in card else ""
        summary += f"  {where}{task_text(result)}, {mode_text(result)}"
    return summary
