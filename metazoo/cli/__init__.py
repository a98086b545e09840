"""The command line.

stdout is for data, stderr for messages. The exit status is 0, 2 after a user's mistake, and 1 after
a failure.

`metazoo --help` and the report of a mistyped command or option must be instant. The modules of
commands therefore import torch, and whatever imports it, in the functions that run and not at the
top.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from metazoo.cli.commands import Commands
from metazoo.errors import MetazooError, disk_full, first_line, out_of_memory
from metazoo.io.files import json_text
from metazoo.version import VERSION

if TYPE_CHECKING:
    from metazoo.plugins.error_source import Fault

_USE_CPU = "if it is the GPU's memory, use `--device cpu`"
_PACK = f"{_USE_CPU}; data larger than memory can be packed with `metazoo data pack`"
LESS_MEMORY = {
    "train": "use fewer tasks per step (--meta-batch), smaller tasks, or a smaller network",
    "eval": _PACK,
    "export": _PACK,
    "predict": _USE_CPU,
}
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Commands, invoke_without_command=True, context_settings=SETTINGS)
@click.version_option(VERSION, prog_name="metazoo")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A model zoo of few-shot learners. Train, evaluate, use them, or add your own as a plugin."""
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a file need not be text: it is shown with escapes, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = cli.main(args=arguments, prog_name="metazoo", standalone_mode=False)
        if sys.stdout is not None:  # it is None if the shell closed it (`>&-`)
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
        # The reader of stdout is gone, as in `metazoo list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A full disk is not a bug of the plugin that was writing.
        if not disk_full(error) and _find_fault(error) is not None:
            return report_bug(error, command)
        where = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{where}", None, 1)
    except Exception as error:
        return report_bug(error, command)


def report_bug(error: Exception, command: str) -> int:
    """Print the traceback and whose bug it is, or that memory ran out. Return the exit status."""
    what = f"{type(error).__name__}: {first_line(error)}"
    if out_of_memory(error):
        return fail(f"out of memory: {what}", LESS_MEMORY.get(command), 1)
    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if (fault := _find_fault(error)) is None:
        return fail(
            f"unexpected error in metazoo {VERSION}: {what}",
            "please report it with the traceback above; "
            "`metazoo.testing.check_algorithm` tells whether a plugin is at fault",
            1,
        )
    plugin = fault.plugin
    return fail(
        f"plugin '{plugin.name}' of {plugin.owner} has a bug: {what}\n  {fault.place}",
        "send the traceback above to its author; "
        f"`pip uninstall {plugin.distribution}` removes the plugin",
        1,
    )


def _find_fault(error: Exception) -> Fault | None:
    """Return what `at_fault` returns. If it fails, return None: the first error matters more."""
    try:
        from metazoo.plugins.error_source import at_fault

        return at_fault(error)
    except Exception:
        return None


def fail(message: str, hint: str | None, status: int) -> int:
    """Print an error and a hint on stderr, and return the exit status."""
    if "TORCHELASTIC_RUN_ID" in os.environ and (rank := os.environ.get("RANK", "0")) != "0":
        if status == 130:
            return status  # all processes stop together, and the first one reports it
        message = f"process {rank}: {message}"
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    return status


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json_text(value, indent=2))
