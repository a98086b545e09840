"""The docs are true: tables are current, names exist, examples run as written."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
from pictures import picture

import metazoo
from metazoo import options
from metazoo.base.recipe import Recipe
from metazoo.cli import cli, run
from metazoo.plugins.registry import registry
from metazoo.testing import check_algorithm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metazoo"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("plugins/*/README.md"),
        ROOT / "csrc" / "README.md",
    ]
)
SECTIONS = {"CHANGELOG.md": "### Names that changed"}  # what follows names things that are gone
# Flags of programs that are not metazoo's.
FOREIGN = {
    "--standalone",
    "--nproc-per-node",
    "--max-restarts",
    "--index-url",
    "--no-build-isolation",
    "--local-dir",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    """Return a page without the parts that name what existed before."""
    text = page.read_text(encoding="utf-8")
    return text.partition(SECTIONS[page.name])[0] if page.name in SECTIONS else text


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def spans(text: str) -> list[str]:
    """Return the inline code outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every metazoo command, in console blocks and inline."""
    console = "\n".join(blocks(text, "console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in console.splitlines()]
    for line in [*lines, *spans(text)]:
        words = shlex.split(re.sub(r"\s#\s.*", "", line).replace("'", ""))
        for start in (["metazoo"], ["-m", "metazoo"]):
            for i in range(len(words)):
                if words[i : i + len(start)] == start and (i == 0 or start[0] == "-m"):
                    yield words[i + len(start) :]


@cache
def command_flags(name: str) -> frozenset[str]:
    """Return the flags of a command that do not come from plugins."""
    command: click.Command | None = cli
    for word in name.split():
        assert isinstance(command, click.Group), name
        command = command.get_command(click.Context(command), word)
    assert command is not None, f"no command {name}"
    flags = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    return frozenset({*flags, "--help", "-h"})


@cache
def configured_flags() -> frozenset[str]:
    """Return the flags that come from Config classes."""
    sources = [("", Recipe), *(("", entry.value.Config) for entry in registry().algorithms)]
    sources += [("data-", entry.value.Config) for entry in registry().datasets]
    sources += [("backbone-", entry.value.Config) for entry in registry().backbones]
    names = {prefix + o.name.replace("_", "-") for prefix, c in sources for o in options.read(c)}
    return frozenset({f"--{name}" for name in names} | {f"--no-{name}" for name in names})


@cache
def plugin_flags() -> frozenset[str]:
    """Return the flags of the plugins in the docs, and of metazoo-reptile."""
    guide = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    reptile = ROOT / "plugins" / "metazoo-reptile" / "metazoo_reptile.py"
    code = "\n".join([*blocks(README + guide, "python"), reptile.read_text(encoding="utf-8")])
    names = re.findall(r"^ +(\w+): Annotated\[", code, re.M)
    return frozenset(f"--{name.replace('_', '-')}" for name in names)


@cache
def other_programs() -> str:
    """Return the code of the repository's other programs, which have flags of their own."""
    own = [
        *ROOT.glob("benchmarks/**/*.py"),
        *ROOT.glob("tests/soak/*.py"),
        ROOT / "docs/tables.py",
    ]
    return "\n".join(path.read_text(encoding="utf-8") for path in own)


def test_tables_are_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, check.stdout + check.stderr


@each_page
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    text = re.sub(r"<!-- /?\w+ -->", "", page.read_text(encoding="utf-8"))
    assert "<!--" not in text
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"link to {target}"
        assert not anchor or anchor in anchors(linked), f"link to {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(text_of(page)):
        if not words or words[0].startswith(("-", ".")):
            continue
        name = " ".join(words[:2]) if words[0] == "data" and len(words) > 1 else words[0]
        known = command_flags(name) | configured_flags() | plugin_flags()
        for flag in flags_in(" ".join(words)):
            assert flag in known, f"{flag} in `metazoo {' '.join(words)}`"


@each_page
def test_flags_named_in_the_text_exist(page: Path) -> None:
    names = [name for name in cli.list_commands(click.Context(cli)) if name != "data"]
    known = FOREIGN.union(configured_flags(), plugin_flags())
    known = known.union(*map(command_flags, [*names, "data pack", "data verify"]))
    for flag in flags_in(" ".join(spans(text_of(page)))):
        assert flag in known or flag in other_programs(), flag


def flags_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][\w-]*\w(?![\w-])", text)


@each_page
def test_assignments_of_options_exist(page: Path) -> None:
    names = {o.name for e in registry().algorithms for o in options.read(e.value.Config)}
    for name in re.findall(r"\s-o (\w+)=", text_of(page)):
        assert name in names, name


@each_page
def test_files_exist(page: Path) -> None:
    folders = "metazoo|tests|docs|benchmarks|csrc|plugins"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)", text_of(page)):
        assert (ROOT / path).exists() or (PACKAGE / f"{path}.py").exists(), path


def test_the_files_of_the_two_flows_exist() -> None:
    flows = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8").split("**Now: ")[1:]
    for flow in flows:
        rows = "\n".join(re.findall(r"^\|.*", flow.partition("**At commit")[0], re.M))
        files = spans(rows)
        assert len(files) == int(flow.split()[0])
        for file in files:
            assert (PACKAGE / f"{file}.py").exists(), file


@each_page
def test_public_names_exist(page: Path) -> None:
    text = text_of(page)
    code = "\n".join([*blocks(text, "python"), *spans(text)])
    for name in set(re.findall(r"(?<![\w./-])metazoo((?:\.[a-zA-Z_]\w*)+)", code)):
        if name not in {".commands", ".json"}:
            resolve(name.removeprefix("."))


def resolve(dotted: str) -> None:
    """Find a name of metazoo, importing modules where needed; fail if it does not exist."""
    value: object = metazoo
    for i, part in enumerate(parts := dotted.split(".")):
        if not hasattr(value, part) and isinstance(value, ModuleType):
            importlib.import_module(".".join(["metazoo", *parts[: i + 1]]))
        value = getattr(value, part)


@each_page
def test_programs_exist(page: Path) -> None:
    text = text_of(page)
    for module in re.findall(r"python3? -m (benchmarks(?:\.\w+)*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), module
    for names in re.findall(r"python3? -m benchmarks((?: \w+)+)", text):
        for name in names.split():
            assert (ROOT / "benchmarks" / f"{name}.py").exists(), name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|\$ )make ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"


@each_page
def test_python_is_valid(page: Path) -> None:
    for block in blocks(text_of(page), "python"):
        ast.parse(block)


@pytest.mark.parametrize("name", ["results.md", "performance.md", "reliability.md"])
def test_a_table_has_at_most_three_sentences(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    # A block that docs/tables.py fills counts as its tables.
    text = re.sub(
        r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->",
        lambda block: "\n\n".join(re.findall(r"(?:^\|.*\n)+", block[2], re.M)),
        text,
        flags=re.S,
    )
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for section in re.split(r"^#+ ", text, flags=re.M)[1:]:
        tables = len(re.findall(r"(?:^\|.*(?:\n|$))+", section, re.M))
        title, _, body = section.partition("\n")
        found = sentences(body)
        assert not tables or len(found) <= 3 * tables, f"{title}: {found}"


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, without tables, pictures and code."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith(("|", "!")))
    prose = re.sub(r"`[^`]*`", "CODE", prose).replace("et al.", "et al")
    return [part for part in re.split(r"(?<=[.!?])\s+", prose) if re.search(r"[.!?]$", part)]


def test_the_readme_says_what_it_needs() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", project)
    for version in [*versions, *re.findall(r"torch>=(\d+\.\d+)", project)]:
        assert version in README.split("## Classify")[0], version


def test_the_first_examples_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.split("## Classify your own photos and texts")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    drawn = {"sun1": "bar", "sun2": "bar", "moon1": "dot", "new1": "bar", "new2": "dot"}
    for seed, (name, kind) in enumerate(drawn.items()):
        picture(kind, seed).save(f"{name}.jpg")
    exec(compile(blocks(section, "python")[0], "README.md", "exec"), {})
    assert capsys.readouterr().out == "['sun' 'moon']\n"

    command, *_ = commands("```console\n" + blocks(section, "console")[0] + "```")
    for name in ("photos/sun/sun1", "photos/sun/sun2", "photos/moon/moon1", "new/new1", "new/new2"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{Path(name).name}.jpg").rename(f"{name}.jpg")
    assert run([*command, "--json"]) == 0
    labels = [row["label"] for row in json.loads(capsys.readouterr().out)]
    assert labels == ["sun", "moon"]


def test_the_smallest_plugin_keeps_the_contract() -> None:
    guide = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "metazoo_nearest_mean"}
    exec(compile(blocks(guide, "python")[0], "plugins.md", "exec"), namespace)
    (algorithm,) = namespace["register_algorithms"]().values()  # type: ignore[operator]
    check_algorithm(algorithm)


@pytest.mark.slow
def test_the_demo_runs_as_the_makefile_has_it(tmp_path: Path) -> None:
    recipe = (
        (ROOT / "Makefile").read_text(encoding="utf-8").split("$(BIN)/metazoo ")[1].split("\n\n")[0]
    )
    words = recipe.replace("\\\n", " ").replace("$(PROGRESS)", "lines").split()
    words[words.index("--steps") + 1] = "4"
    words[words.index("--validate-every") + 1] = "2"
    demo = [sys.executable, "-m", "metazoo", *words]
    done = subprocess.run(
        demo, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "95 % interval" in done.stdout
    assert "chance 20.0%" in done.stdout
    shown = shape_of(blocks(README.split("## Train a model")[1], "text")[0])
    assert shape_of(done.stdout)[: len(shown)] == shown


def shape_of(log: str) -> list[str]:
    """Return the lines of a log, with the figures masked."""
    masked = re.sub(r"[\d.]+", "0", log.replace(" (best)", ""))
    return [" ".join(line.split()) for line in masked.splitlines()]


@pytest.mark.slow
def test_the_plugin_of_the_readme_works(tmp_path: Path) -> None:
    section = README.split("## Write a plugin")[1]
    module, project = blocks(section, "python")[0], blocks(section, "toml")[0]
    assert module.count("\n") + project.count("\n") < 50, "more than a screenful"
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "metazoo_nearest.py").write_text(module)
    (tmp_path / "src" / "pyproject.toml").write_text(project)
    site = tmp_path / "site"
    install = ["pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", *install, "--target", str(site), str(tmp_path / "src")],
        check=True,
        capture_output=True,
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = json.loads(python("-m", "metazoo", "list", "--json"))["algorithms"]
    assert "nearest" in [item["name"] for item in listed]
    sizes = "--steps 2 --train-ways 3 --validation-episodes 2 --test-episodes 4 --backbone-width 4 --data-alphabets 6"
    trained = python(
        "-m", "metazoo", "train", "nearest", "--sharpness", "0.5", "--json", *sizes.split()
    )
    assert json.loads(trained)["tasks"] == 4
    python("-c", "from metazoo.testing import check_algorithm; check_algorithm('nearest')")


def test_weights_of_torch_save_are_converted_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = registry().backbone("conv4").value((1, 28, 28))
    torch.save(theirs.state_dict(), "theirs.pt")
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    exec(compile(blocks(page, "python")[0], "models.md", "exec"), {})
    ours = metazoo.load("protonet.theirs.safetensors").backbone.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())
