"""The docs say what is so: tables come from the code and the cards, and the plugin of the README works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_nothing_is_left_to_be_filled_in() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = re.sub(r"<!-- /?\w+ -->", "", document.read_text(encoding="utf-8"))
        assert "<!--" not in text, document.name


def test_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.slow
def test_the_demo_runs_as_the_makefile_has_it(tmp_path: Path) -> None:
    recipe = (
        (ROOT / "Makefile").read_text(encoding="utf-8").split("$(BIN)/metazoo ")[1].split("\n\n")[0]
    )
    words = recipe.replace("\\\n", " ").replace("$(PROGRESS)", "lines").split()
    words[words.index("--steps") + 1] = "4"
    words[words.index("--validate-every") + 1] = "2"
    done = subprocess.run(
        [sys.executable, "-m", "metazoo", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in done.stdout
    assert "chance 20.0%" in done.stdout
    assert "validation accuracy" in done.stderr


@pytest.mark.slow
def test_the_plugin_of_the_readme_works(tmp_path: Path) -> None:
    section = README.split("## Write a plugin")[1]
    module, project = (
        re.search(r"```python\n(.*?)```", section, re.S),
        re.search(r"```toml\n(.*?)```", section, re.S),
    )
    assert module
    assert project
    assert module[1].count("\n") + project[1].count("\n") < 50, "more than a screenful"
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "metazoo_nearest.py").write_text(module[1])
    (tmp_path / "src" / "pyproject.toml").write_text(project[1])
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
    ]
    subprocess.run(
        [*install, "--target", str(site), str(tmp_path / "src")], check=True, capture_output=True
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "nearest" in [
        item["name"] for item in json.loads(run("metazoo", "list", "--json"))["algorithms"]
    ]
    sizes = "--steps 2 --train-ways 3 --validation-episodes 2 --test-episodes 4 --backbone-width 4 --data-alphabets 6"
    result = json.loads(
        run("metazoo", "train", "nearest", "--sharpness", "0.5", "--json", *sizes.split())
    )
    assert result["tasks"] == 4
    checked = "from metazoo.testing import check_algorithm; check_algorithm('nearest')"
    script = tmp_path / "check.py"
    script.write_text(checked)
    subprocess.run([sys.executable, str(script)], env=environment, check=True, capture_output=True)
