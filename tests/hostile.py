"""Plugins that try to take the program down, and how they are put on a path without pip.

Each is one distribution `zoo-CASE`; in its source NAME stands for the case. `make soak` uses them too.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from distributions import ALGORITHM, Distribution

PLAIN = "import click, metazoo, os, sys\n"
PRINTED = "printed by a plugin"


@dataclass(frozen=True)
class Hostile(Distribution):
    """A hostile distribution, the problem that metazoo must name, and the METADATA it comes with.

    Without a `problem` the plugin works, and metazoo must not be disturbed by it.
    """

    problem: str = ""
    command_problem: str = ""
    metadata: str | bytes = "Metadata-Version: 2.1\nName: zoo-NAME\nVersion: 1.2.3\n"
    points: bytes | None = field(default=None)


def at_import(source: str, problem: str = "") -> Hostile:
    """Return a plugin whose module runs this, and which then registers a working algorithm."""
    return Hostile(f"{PLAIN}{source}\n{returning('NAME: Nearest')}", problem)


def returning(items: str, hook: str = "register_algorithms") -> str:
    """Return a plugin whose hook returns a dictionary of these items."""
    items = items.replace("NAME:", "'NAME':")
    return f"{PLAIN}{ALGORITHM}\n@metazoo.hookimpl\ndef {hook}():\n    return {{{items}}}\n"


def in_hook(
    statement: str, problem: str, before: str = "", hook: str = "register_algorithms"
) -> Hostile:
    """Return a plugin whose hook runs this statement."""
    return Hostile(
        f"{PLAIN}{ALGORITHM}{before}\n@metazoo.hookimpl\ndef {hook}():\n    {statement}\n", problem
    )


def named(name: str) -> Hostile:
    """Return a plugin whose algorithm has this name, a Python expression."""
    return in_hook(f"return {{{name}: Nearest}}", "cannot be a name")


def commanding(value: str, problem: str, name: str = "NAME", before: str = "") -> Hostile:
    """Return a distribution whose one entry point is a command."""
    source = f"{PLAIN}{before}\ncommand = {value}\n"
    return Hostile(source, command_problem=problem, plugins={}, commands={name: "MODULE:command"})


def with_metaclass(body: str, problem: str) -> Hostile:
    """Return a plugin whose algorithm has a metaclass with this method."""
    before = f"\nclass Meta(type):\n    {body}\nclass Odd(Nearest, metaclass=Meta):\n    'An algorithm.'\n"
    return in_hook("return {'NAME': Odd}", problem, before)


def with_attribute(line: str, problem: str) -> Hostile:
    """Return a plugin whose algorithm has this line in its body."""
    return in_hook("return {'NAME': Odd}", problem, f"\nclass Odd(Nearest):\n    {line}\n")


MAPPING = """
from collections.abc import Mapping
class Odd(Mapping):
    def __getitem__(self, key): return Nearest
    def __len__(self): return 1
    def __iter__(self): BODY
"""
GROUP = "\n@click.group()\ndef group(): pass\n"
HOSTILE = {
    # At import.
    "import-base-exception": at_import("raise BaseException('gone')", "BaseException: gone"),
    "import-keyboard-interrupt": at_import("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "import-generator-exit": at_import("raise GeneratorExit", "GeneratorExit"),
    "import-system-exit": at_import("sys.exit('bye')", "SystemExit: bye"),
    "import-stop-iteration": at_import("raise StopIteration", "StopIteration"),
    "import-recursion": at_import("f = lambda: f()\nf()", "RecursionError: "),
    "import-memory": at_import("raise MemoryError", "MemoryError"),
    "import-interrupted-system-call": at_import(
        "raise BrokenPipeError(32, 'gone')", "BrokenPipeError"
    ),
    "import-str-raises": at_import(
        "class E(Exception):\n    def __str__(self): raise SystemExit('str')\nraise E",
        "E: its message cannot",
    ),
    "import-str-odd": at_import(
        "class E(Exception):\n    def __str__(self): return 3\nraise E", "E: its message cannot"
    ),
    "import-type-raises": at_import(
        "class M(type):\n    @property\n    def __name__(cls): raise SystemExit\n"
        "class E(Exception, metaclass=M): pass\nraise E",
        "an exception that cannot be shown",
    ),
    "import-hint-raises": at_import(
        "class E(Exception):\n    @property\n    def hint(self): raise SystemExit\nraise E('gone')",
        "E: gone",
    ),
    "import-own-error": at_import("raise metazoo.MetazooError(None, 3)", "None"),
    "import-escapes": at_import(
        r"raise ValueError('\x1b[2J\u202eforged')", "ValueError: \x1b[2J\u202eforged"
    ),
    "import-long-message": at_import("raise ValueError('x' * 10**6)", "ValueError: xxx"),
    "import-missing-number": at_import(
        "raise ModuleNotFoundError('gone', name=3)", "ModuleNotFoundError: gone"
    ),
    "import-missing-command": at_import(
        "raise ModuleNotFoundError('gone', name='x; rm -rf ~')", "ModuleNotFoundError: gone"
    ),
    "import-ignores-interrupts": at_import(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
    ),
    "import-replaces-stdout": at_import("import io\nsys.stdout = io.StringIO()"),
    "import-prints": at_import(f"print({PRINTED!r})\nprint({PRINTED!r}, file=sys.__stdout__)"),
    "import-prints-descriptor": at_import(f"os.write(1, b'{PRINTED}')"),
    "import-prints-subprocess": at_import(f"os.system('echo {PRINTED}')"),
    "import-prints-native": at_import(f"import ctypes\nctypes.CDLL(None).puts(b'{PRINTED}')"),
    # In a module's attributes.
    "module-getattr": Hostile(
        f"{PLAIN}class Plugin:\n    def __getattr__(self, name): sys.exit(name)\nplugin = Plugin()",
        "SystemExit: ",
        plugins={"NAME": "MODULE:plugin"},
    ),
    "module-getattribute": Hostile(
        f"{PLAIN}class Plugin:\n    def __getattribute__(self, name): raise KeyboardInterrupt\nplugin = Plugin()",
        "KeyboardInterrupt",
        plugins={"NAME": "MODULE:plugin"},
    ),
    "module-equal-to-all": Hostile(
        f"{PLAIN}class Plugin:\n    def __eq__(self, other): raise SystemExit\n    __hash__ = None\nplugin = Plugin()",
        "SystemExit",
        plugins={"NAME": "MODULE:plugin"},
    ),
    # In a hook.
    "hook-base-exception": in_hook(
        "raise BaseException('gone')", "register_algorithms raised BaseException: gone"
    ),
    "hook-keyboard-interrupt": in_hook(
        "raise KeyboardInterrupt", "register_algorithms raised KeyboardInterrupt"
    ),
    "hook-generator-exit": in_hook(
        "raise GeneratorExit", "register_algorithms raised GeneratorExit"
    ),
    "hook-str-raises": in_hook(
        "raise E",
        "raised E: its message cannot",
        "\nclass E(BaseException):\n    def __str__(self): raise KeyboardInterrupt\n",
    ),
    "hook-prints": in_hook(f"os.write(1, b'{PRINTED}'); print({PRINTED!r}); return {{}}", ""),
    "hook-datasets": in_hook(
        "raise BaseException('gone')", "register_datasets raised", hook="register_datasets"
    ),
    "hook-mapping": in_hook(
        "return Odd()", "ValueError: gone", MAPPING.replace("BODY", "raise ValueError('gone')")
    ),
    "hook-mapping-exits": in_hook(
        "return Odd()", "SystemExit", MAPPING.replace("BODY", "raise SystemExit")
    ),
    "hook-repr": in_hook(
        "return {'NAME': Odd()}",
        "is not a subclass of metazoo.Algorithm",
        "\nclass Odd:\n    def __repr__(self): raise ValueError('repr')\n",
    ),
    "hook-class-lies": in_hook(
        "return {'NAME': Odd()}",
        "offers 'hook-class-lies', which cannot be used",
        "\nclass Odd:\n    @property\n    def __class__(self): raise SystemExit\n",
    ),
    "card-text": in_hook("return {'x.y': __file__}", "", hook="register_pretrained"),
    "card-bytes": in_hook(
        "return {'x.y': b'x.json'}", "is not the path", hook="register_pretrained"
    ),
    "card-nul": in_hook("return {'x.y': 'a\\0b'}", "cannot be used", hook="register_pretrained"),
    "card-fspath": in_hook(
        "return {'x.y': Odd()}",
        "KeyboardInterrupt",
        "\nclass Odd(os.PathLike):\n    def __fspath__(self): raise KeyboardInterrupt\n",
        "register_pretrained",
    ),
    "card-device": in_hook(
        "return {'x.y': '/dev/zero'}", "is not the path", hook="register_pretrained"
    ),
    # Names.
    "name-parent": named("'../../x'"),
    "name-empty": named("''"),
    "name-option": named("'--help'"),
    "name-long": named("'x' * 100_000"),
    "name-escape": named(r"'\x1b[2Jx'"),
    "name-lines": named(r"'x\nerror: forged'"),
    "name-bidi": named(r"'x\u202ey'"),
    "name-surrogate": named(r"'x\udcff'"),
    "name-space": named("'a b'"),
    "name-subclass": in_hook(
        "return {Odd('NAME'): Nearest}",
        "",
        "\nclass Odd(str):\n    def __str__(self): raise SystemExit\n"
        "    def __format__(self, spec): raise SystemExit\n",
    ),
    # In a class.
    "class-getattr": with_metaclass(
        "def __getattribute__(cls, name): raise SystemExit(name)", "SystemExit"
    ),
    "class-doc": with_metaclass(
        "__doc__ = property(lambda cls: sys.exit('doc'))", "SystemExit: doc"
    ),
    "class-doc-number": with_attribute("__doc__ = 3", ""),
    "class-doc-escapes": with_attribute(r"__doc__ = '\x1b[2J[red]forged'", ""),
    "class-recipe": with_metaclass(
        "recipe = property(lambda cls: sys.exit('recipe'))", "SystemExit: recipe"
    ),
    "class-recipe-mapping": in_hook(
        "return {'NAME': Other}",
        "not a dictionary",
        MAPPING.replace("BODY", "raise KeyboardInterrupt")
        + "class Other(Nearest):\n    recipe = Odd()\n",
    ),
    "class-recipe-keys": with_attribute("recipe = {3: 4}", "its recipe is {3: 4}, not"),
    "class-config-exits": with_attribute(
        "@dataclass(frozen=True)\n    class Config(metazoo.Config):\n"
        "        alpha: int = 1\n        def __post_init__(self): sys.exit('config')",
        "SystemExit: config",
    ),
    "class-regression": with_attribute(
        "supports_regression = 'no'", "its supports_regression is 'no'"
    ),
    "class-equal-shots": with_attribute("equal_shots = 'no'", "its equal_shots is 'no'"),
    "dataset-drawings": in_hook(
        "return {'NAME': Odd}",
        "its drawings is 'no'",
        "\nclass Odd(metazoo.Dataset):\n    drawings = 'no'\n",
        "register_datasets",
    ),
    "dataset-local-options": in_hook(
        "return {'NAME': Odd}",
        "its local_options is None",
        "\nclass Odd(metazoo.Dataset):\n    local_options = None\n",
        "register_datasets",
    ),
    # Commands.
    "command-none": commanding("None", "is not a click command"),
    "command-lies": commanding(
        "Odd()",
        "SystemExit",
        before="class Odd:\n    __class__ = property(lambda self: sys.exit(3))",
    ),
    "command-exits": commanding("sys.exit(4)", "SystemExit: 4"),
    "command-interrupt": commanding("None", "KeyboardInterrupt", before="raise KeyboardInterrupt"),
    "command-group-none": commanding("group", "TypeError", before=f"{GROUP}group.commands = None"),
    "command-group-key": commanding(
        "group", "has 3, which", before=f"{GROUP}group.commands[3] = group"
    ),
    "command-group-value": commanding(
        "group", "has 'x', which", before=f"{GROUP}group.commands['x'] = None"
    ),
    "command-group-cycle": commanding("group", "", before=f"{GROUP}group.commands['x'] = group"),
    "command-name-option": commanding("None", "'--help' cannot be a name", name="--help"),
    "command-name-path": commanding("None", "'../../x' cannot be a name", name="../../x"),
    "command-name-escape": commanding("None", "cannot be a name", name="\x1b[2J"),
    "command-name-long": commanding("None", "cannot be a name", name="x" * 100_000),
    # Metadata.
    "metadata-nothing": Hostile(returning("NAME: Nearest"), metadata=""),
    "metadata-binary": Hostile(returning("NAME: Nearest"), metadata=b"Name: \xff\xfe\n"),
    "metadata-escape": Hostile(
        "1 / 0", "ZeroDivisionError", metadata="Name: \x1b[2J; rm -rf ~\nVersion: \x07\n"
    ),
    "points-binary": Hostile("", points=b"[metazoo]\n\xff = x\n"),
    "points-unreadable": Hostile("", points=b"no section\n"),
}


def install(folder: Path, case: str) -> Path:
    """Write a hostile distribution into a folder of its own, as pip would, and return that folder."""
    hostile, place = HOSTILE[case], folder / case
    place.mkdir(parents=True)
    with zipfile.ZipFile(hostile.write(place, case)) as wheel:
        wheel.extractall(place)
    [info] = place.glob("*.dist-info")
    metadata = hostile.metadata
    data = metadata if isinstance(metadata, bytes) else metadata.replace("NAME", case).encode()
    (info / "METADATA").write_bytes(data)
    if hostile.points is not None:
        (info / "entry_points.txt").write_bytes(hostile.points)
    return place
