"""Plugins that mean harm or are broken: metazoo names each, and everything else works."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from metazoo.plugins.registry import registry

from . import mutations
from .commands import answer, command
from .material import NAME, Material
from .subject import Case, Subject, must

BUILT_IN = {"baseline", "baseline++", "maml", "matching", "protonet"}
PATH = list(sys.path)


def install(folder: Path, module: str, source: str, entry_points: str | None = None) -> Path:
    """Write a plugin as pip installs it, and return the folder that belongs on the path."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source, encoding="utf-8", errors="surrogatepass")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points or f"[metazoo]\n{module} = {module}\n")
    return folder


def use(folder: Path) -> None:
    """Put a folder of plugins on the path of this process, instead of one before."""
    sys.path[:] = [str(folder), *PATH]
    for name in [name for name in sys.modules if name.startswith(("soak_", "zoo_"))]:
        del sys.modules[name]
    importlib.invalidate_caches()
    registry.cache_clear()


def register_pretrained(name: str, card: Path) -> None:
    """Let a plugin of this process offer a card."""
    source = (
        "import metazoo, pathlib\n@metazoo.hookimpl\ndef register_pretrained():\n"
        f"    return {{{name!r}: pathlib.Path({str(card.resolve())!r})}}\n"
    )
    use(install(Path("site").resolve(), "soak_cards", source))


def everything_works(material: Material) -> list[str]:
    """Raise Fault unless the built-in plugins work; return the problems of the others."""
    told = answer("plugins")["plugins"]
    problems = [one for one in told if one["distribution"] == "metazoo" and one["problem"]]
    must(not problems, f"built-in plugins fail: {problems}")
    listed = {one["name"] for one in answer("list")["algorithms"]}
    must(listed >= BUILT_IN, f"only {sorted(listed)} are listed")
    for words in (["plugins"], ["list"], ["--help"]):
        command(*words)
    answer(
        *("predict", "--model", material.model / f"{NAME}.json", "--device", "cpu"),
        *("--support", material.support, "--query", material.query),
    )
    return [one["problem"] for one in told if one["problem"]]


def hostile() -> Any:
    """Return the module with hostile plugins, of the tests of plugins."""
    try:
        return importlib.import_module("hostile")
    except ModuleNotFoundError:
        return None


def subjects(material: Material) -> list[Subject]:
    found = hostile()
    names = sorted(found.HOSTILE) if found else []

    def run_hostile(case: Case) -> Any:
        name = names[case.number % len(names)]
        case.note(name)
        use(found.install(case.folder, name))
        return everything_works(material)

    def run_metadata(case: Case) -> Any:
        """Damage what pip wrote of a plugin that is sound."""
        source = "import metazoo\n@metazoo.hookimpl\ndef register_backbones():\n    return {}\n"
        folder = install(case.folder / "site", "soak_sound", source)
        file = case.rng.choice(("METADATA", "entry_points.txt", "../soak_sound.py"))
        path = folder / "soak_sound-1.0.dist-info" / file
        data = path.read_bytes()
        text = case.rng.choice(mutations.TEXTS).encode("utf-8", "surrogatepass")
        at = case.rng.choice((data.find(b"soak"), case.rng.randrange(len(data))))
        edits = (
            lambda: mutations.some_bytes(case.rng, data),
            lambda: data[:at] + text + data[at:],
            lambda: data.replace(b"soak_sound", text),
            lambda: data + data.replace(b"soak_sound =", b"other ="),
            lambda: data.replace(b"= soak_sound", b"= " + text),
        )
        case.note(file)
        path.write_bytes(case.rng.choice(edits)())
        use(folder)
        return everything_works(material)

    table = [Subject("metadata", "what pip wrote of a plugin", run_metadata, 300, 10)]
    if names:
        count = len(names)
        table.append(Subject("plugins", "hostile plugins", run_hostile, count, count, together=1))
    return table
