"""Encoder and fitted head as one ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metazoo import FewShotClassifier
from metazoo.errors import OptionError

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_gives_the_same_probabilities(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    y = np.arange(15) % 3
    X = noise.normal(size=(15, 4)) + 3 * np.eye(3, 4)[y]
    classifier = FewShotClassifier(device="cpu").fit(X, y)
    classifier.to_onnx(tmp_path / "rows.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "rows.onnx"))
    (name,) = (each.name for each in session.get_inputs())
    queries = noise.normal(size=(7, 4))
    kind = {"tensor(double)": np.float64}.get(session.get_inputs()[0].type, np.float32)
    found = session.run(None, {name: queries.astype(kind)})[0]
    assert np.allclose(found, classifier.predict_proba(queries), atol=1e-4)


@pytest.mark.slow
def test_what_cannot_be_exported_is_said(maml_run: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 28, 28), dtype=np.uint8)
    classifier = FewShotClassifier(maml_run, device="cpu")
    with pytest.raises(OptionError):
        classifier.fit(images, list("aabbcc")).to_onnx(tmp_path / "maml.onnx")
