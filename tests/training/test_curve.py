"""Learning curves."""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image

from metazoo.training import curve

METRICS = [
    {"step": 10, "loss": 2.0, "lr": 0.1},
    {"step": 10, "validation_accuracy": 0.3},
    {"step": 20, "loss": 1.0, "lr": 0.1},
    {"step": 20, "validation_accuracy": 0.5},
]


def test_validations_are_found_with_their_metric() -> None:
    assert curve.validations(METRICS) == ("accuracy", [(10, 0.3), (20, 0.5)])
    assert curve.validations([{"step": 1, "validation_mse": 4.0}]) == ("mse", [(1, 4.0)])
    assert curve.validations([]) == ("accuracy", [])


def test_a_png_is_drawn_with_and_without_points(tmp_path: Path) -> None:
    sizes = []
    for name, metrics, chance in (
        ("full", METRICS, 0.2),
        ("none", [], None),
        ("odd", [{"step": 1, "loss": math.nan}], 0.2),
    ):
        path = tmp_path / f"{name}.png"
        curve.save_png(path, "a title", metrics, chance)
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            sizes.append(image.size)
            assert image.format == "PNG"
    assert sizes == [(1080, 432)] * 3
    assert (tmp_path / "full.png").read_bytes() != (tmp_path / "none.png").read_bytes()


def test_the_text_curve_goes_up_where_the_values_do() -> None:
    lines = curve.text([(10, 0.25), (20, 0.5), (40, 1.0)], height=5, width=21, bottom=0.0).split(
        "\n"
    )
    rows = [line.partition("|")[2] for line in lines[:5]]
    places = [
        (row, column)
        for row, line in enumerate(rows)
        for column, cell in enumerate(line)
        if cell == "*"
    ]
    assert places == [(0, 20), (2, 10), (3, 5)]  # top row first
    assert lines[0].startswith("   1.000 |")
    assert lines[4].startswith("   0.000 |")
    assert lines[-1].split() == ["0", "40", "steps"]


def test_the_text_curve_bears_odd_values() -> None:
    assert curve.text([]) == ""
    assert curve.text([(1, math.nan), (2, math.inf)]) == ""
    assert curve.text([(10, math.nan), (20, 0.5)]) == curve.text([(20, 0.5)])
    flat = curve.text([(1, 0.5), (2, 0.5)])
    assert flat.count("*") == 2
    assert curve.text([(0, 0.5)]).count("*") == 1
    below = curve.text([(1, 0.1), (2, 0.3)], bottom=0.2).split("\n")
    assert below[7].startswith("   0.100 |")
