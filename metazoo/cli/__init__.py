"""The command line. stdout is data, stderr is talk; exit status 0, 2 for a user's mistake, 1 for a failure."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from metazoo.errors import MetazooError, UnknownNameError, first_line, out_of_memory
from metazoo.version import VERSION

if TYPE_CHECKING:
    from metazoo.plugins.error_source import Fault

BUILT_IN = {
    "list": "metazoo.cli.listing:list_",
    "train": "metazoo.cli.training:train",
    "eval": "metazoo.cli.evaluation:eval_",
    "predict": "metazoo.cli.prediction:predict",
    "export": "metazoo.cli.exporting:export",
    "push": "metazoo.cli.pushing:push",
    "data": "metazoo.cli.packing:data",
    "plugins": "metazoo.cli.listing:plugins",
    "info": "metazoo.cli.listing:info",
}
# What a command can do where memory is too small.
_ELSEWHERE = "where it is a GPU's, take `--device cpu`"
_PACKED = f"{_ELSEWHERE}; data that are larger than memory are packed, by `metazoo data pack`"
SMALLER = {
    "train": "take fewer or smaller tasks at a time (--meta-batch), or a smaller network",
    "eval": _PACKED,
    "export": _PACKED,
    "predict": _ELSEWHERE,
}


class Commands(click.Group):
    """The built-in commands, each imported when it is used, and those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from metazoo.plugins.registry import registry

        return [*BUILT_IN, *(entry.name for entry in registry().commands)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in BUILT_IN:
            import importlib

            module, _, attribute = BUILT_IN[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        from metazoo.plugins.registry import registry

        try:
            return registry().command(name).value
        except UnknownNameError:
            if ctx.resilient_parsing:  # a shell completes words
                return None
            raise


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Commands, invoke_without_command=True, context_settings=SETTINGS)
@click.version_option(VERSION, prog_name="metazoo")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A model zoo of few-shot learners: train, evaluate and use them, or add your own as a plugin."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    command = next((word for word in words if not word.startswith("-")), "")
    try:
        result = cli.main(args=arguments, prog_name="metazoo", standalone_mode=False)
        if sys.stdout is not None:  # as after `>&-`
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except MetazooError as error:
        return fail(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "metazoo"
        return fail(error.format_message().rstrip("."), f"`{path} --help` shows what it takes", 2)
    except click.ClickException as error:
        return fail(error.format_message(), None, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted", None, 130)
    except BrokenPipeError:
        # The reader of stdout has gone (`metazoo list | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A full disk is nobody's bug, whoever meets it.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and _fault(error) is not None:
            return unforeseen(error, command)
        return fail(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", None, 1
        )
    except Exception as error:
        return unforeseen(error, command)


def unforeseen(error: Exception, command: str) -> int:
    """Say whose bug an exception is, below its traceback, or that memory is too small, and return the exit status."""
    what = f"{type(error).__name__}: {first_line(error)}"
    if out_of_memory(error):
        return fail(f"out of memory: {what}", SMALLER.get(command), 1)
    # Whoever is to mend it needs the traceback, and may not be the one who meets it, after hours of training.
    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if (fault := _fault(error)) is None:
        return fail(
            f"metazoo {VERSION} met an error that it did not foresee: {what}",
            "report it with the traceback above; `metazoo.testing.check_algorithm` says whether a plugin is to blame",
            1,
        )
    plugin = fault.plugin
    return fail(
        f"plugin '{plugin.name}' of {plugin.owner} has a bug: {what}\n  {fault.place}",
        f"its author needs the traceback above; `pip uninstall {plugin.distribution}` does without it",
        1,
    )


def _fault(error: Exception) -> Fault | None:
    """Return what `at_fault` does, or None where that fails itself: what is to be told must be told."""
    try:
        from metazoo.plugins.error_source import at_fault

        return at_fault(error)
    except Exception:
        return None


def fail(message: str, hint: str | None, status: int) -> int:
    """Say on stderr what went wrong and what to do, and return the exit status."""
    if "TORCHELASTIC_RUN_ID" in os.environ and (rank := os.environ.get("RANK", "0")) != "0":
        if status == 130:
            return status  # all processes stop together, and the first says so
        message = f"process {rank}: {message}"
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return status


def echo_json(value: Any) -> None:
    """Write a value to stdout as JSON."""
    import json

    click.echo(json.dumps(value, indent=2))
