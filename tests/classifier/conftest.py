"""A classifier that several tests ask; never changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from classified import LABELS, tensors

from metazoo import FewShotClassifier


@pytest.fixture(scope="module")
def classifier(protonet_run: Path) -> FewShotClassifier:
    return FewShotClassifier(protonet_run, device="cpu").fit(tensors(LABELS), LABELS)
