"""P>M>F: Hu et al. 2022, "Pushing the Limits of Simple Pipelines for Few-Shot Learning: External
Data and Fine-Tuning Make a Difference" (arXiv:2204.07305)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo.base.algorithm import class_means
from metazoo.base.encoder import Encoder
from metazoo.finetuning.fine_tuned import Estimate, FineTuned, minimise
from metazoo.nn.augmentation import AUGMENTATIONS

STEPS = 50
LR = 1e-5
SCALE = 10.0  # of the cosine similarities
QUERIES = 50  # augmented images in a step


def pmf(
    encoder: Encoder,
    x: Tensor,
    y: Tensor,
    estimate: Estimate,
    *,
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
) -> FineTuned:
    """Return an encoder of images fine-tuned on labelled images x (S, C, H, W), y (S,).

    In each step, augmented images of the support set are the queries, and the images themselves
    give the prototypes (section 3.3). All weights of the network change.
    """
    tuned = FineTuned(encoder)
    generator = torch.Generator().manual_seed(seed)

    def losses() -> Iterator[Tensor]:
        for _ in range(steps):
            chosen = torch.randperm(len(x), generator=generator)[:QUERIES]
            queries = AUGMENTATIONS["photo"](x[chosen])
            z = F.normalize(tuned(torch.cat([x, queries])), dim=1)
            support_z, query_z = z.split([len(x), len(queries)])
            prototypes = F.normalize(class_means(support_z[None], y[None])[0], dim=1)
            yield F.cross_entropy(SCALE * query_z @ prototypes.T, y[chosen])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        minimise(tuned, losses(), steps, lr, estimate)
    return tuned
