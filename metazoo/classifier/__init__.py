"""The classifier for a few labelled examples: `FewShotClassifier`.

`estimator` is the class. `examples` says what examples may be, `labels` what labels may be, `models`
which model answers, and `head` asks it. `honesty`, `calibration` and `rejection` judge the answers;
`suggestion` and `explanation` help to understand and improve them; `saving` and `onnx_export` write files.
"""

from metazoo.classifier.estimator import FewShotClassifier

__all__ = ["FewShotClassifier"]
