"""Models pretrained by metazoo: for each one, weights as safetensors and a model card as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metazoo.plugins.marker import hookimpl


@hookimpl
def register_pretrained() -> Mapping[str, Path]:
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.json"))}
