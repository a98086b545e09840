"""The command line.

stdout is for data, stderr for messages. The exit status is 0, 2 after a user's mistake, and 1 after
a failure.

`metazoo --help` and the report of a mistyped command or option must be instant. The modules of
commands therefore import torch, and whatever imports it, in the functions that run and not at the
top.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from metazoo.cli.commands import BUILT_IN, Commands
from metazoo.cli.terminal import ReaderGone, printable_streams
from metazoo.errors import (
    DataWarning,
    MetazooError,
    did_you_mean,
    disk_full,
    first_line,
    out_of_memory,
)
from metazoo.io.files import json_text
from metazoo.quoting import printable, shell_word
from metazoo.version import VERSION

if TYPE_CHECKING:
    from metazoo.base.dataset import Dataset
    from metazoo.plugins.error_source import Fault

_USE_CPU = "if it is the GPU's memory, use `--device cpu`"
_PACK = f"{_USE_CPU}; data larger than memory can be packed with `metazoo data pack`"
LESS_MEMORY = {
    "train": "use fewer tasks per step (--meta-batch), smaller tasks, or a smaller network",
    "eval": _PACK,
    "export": _PACK,
    "predict": _USE_CPU,
}
# Characters of an error or a hint; a name may have any number of them.
LONGEST = 1000
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
    with printable_streams(), warnings.catch_warnings():
        warnings.simplefilter("default", DataWarning)
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        return _run(sys.argv[1:] if arguments is None else list(arguments))


def _run(words: list[str]) -> int:
    command = next((word for word in words if not word.startswith("-")), "")
    if "" in words:
        hint = "a variable of the shell may be unset; the current folder is `.`"
        return fail("an argument is empty", hint, 2)
    try:
        result = cli.main(args=words, prog_name="metazoo", standalone_mode=False)
        if sys.stdout is not None:  # it is None if the shell closed it (`>&-`)
            sys.stdout.flush()
        if command != "plugins":  # it has said so
            _warn_of_plugins()
        return result if isinstance(result, int) else 0
    except MetazooError as error:
        return fail(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        return fail(*_usage_error(error), 2)
    except click.ClickException as error:
        return fail(error.format_message(), None, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted", None, 130)
    except (BrokenPipeError, ReaderGone):
        return _stop_writing()
    except OSError as error:
        # A full disk is not a bug of the plugin that was writing.
        if not disk_full(error) and _find_fault(error) is not None:
            return report_bug(error, command)
        where = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{where}", None, 1)
    except SystemExit as end:
        if command not in BUILT_IN:
            raise  # a plugin's command may end like this
        return report_bug(end, command)
    except BaseException as error:
        return report_bug(error, command)


def _usage_error(error: click.UsageError) -> tuple[str, str]:
    """Return the message and the hint for words that a command does not take."""
    path = error.ctx.command_path if error.ctx else "metazoo"
    hint = f"`{path} --help` shows what it takes"
    if isinstance(error, click.NoSuchOption):
        return error.message, did_you_mean(error.option_name, error.possibilities or ()) + hint
    return error.format_message().rstrip("."), hint


def _stop_writing() -> int:
    """Drop what is left for stdout: its reader is gone, as in `metazoo list | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def report_bug(error: BaseException, command: str) -> int:
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
        f"`pip uninstall {shell_word(plugin.distribution)}` removes the plugin",
        1,
    )


def _find_fault(error: BaseException) -> Fault | None:
    """Return what `at_fault` returns. If it fails, return None: the first error matters more."""
    try:
        from metazoo.plugins.error_source import at_fault

        return at_fault(error)
    except Exception:
        return None


def fail(message: str, hint: str | None, status: int) -> int:
    """Print an error and a hint on stderr, and return the exit status."""
    if (rank := _rank()) != "0":
        if status == 130:
            return status  # all processes stop together, and the first one reports it
        message = f"process {rank}: {message}"
    click.echo(f"error: {_presentable(message)}", err=True)
    if hint:
        click.echo(f"hint: {_presentable(hint)}", err=True)
    return status


_show_with_source_line = warnings.showwarning


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **more: Any
) -> None:
    """Print a warning about the user's data without the source line that gave it."""
    if not issubclass(category, DataWarning):
        _show_with_source_line(message, category, *place, **more)
    elif _rank() == "0":  # all processes read the same data
        click.echo(f"warning: {_presentable(str(message))}", err=True)


def _rank() -> str:
    """Return the number of this process among those that torchrun started."""
    return os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"


def _warn_of_plugins() -> None:
    """Report what is wrong with plugins, if the command has looked at them."""
    module = sys.modules.get("metazoo.plugins.registry")
    if module is None or not module.registry.cache_info().currsize or _rank() != "0":
        return
    problems = [
        f"plugin '{plugin.name}' of {plugin.owner} does not work: {plugin.problem}"
        for plugin in module.registry().plugins
        if plugin.problem
    ]
    for kind, name, plugins in module.registry().clashes():
        owners = " and ".join(plugin.owner for plugin in plugins)
        problems.append(f"{kind} '{name}' is claimed by {owners}")
    for problem in problems:
        click.echo(f"warning: {printable(problem)}", err=True)


def _presentable(text: str) -> str:
    """Return a text in which no name looks like a message of its own, or fills the screen."""
    words = re.sub(r"\n(?!  )", r"\\n", text)
    if len(words) > LONGEST:
        return f"{words[: LONGEST // 2]} ... {words[-LONGEST // 2 :]}"
    return words


def echo_notes(data: Dataset) -> None:
    """Print on stderr what a data set has guessed about the data."""
    for note in data.notes:
        click.echo(f"note: {printable(note)}", err=True)


def echo_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity become null."""
    click.echo(json_text(value, indent=2))
