"""How well a support set classifies itself, and whether that is better than guessing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# The error of the tests, and the accuracies that they tell apart, from guessing (0) to no mistakes
# (1): up to NEAR is near chance, and from USEFUL on a model is worth using.
RISK = 0.05
NEAR = 0.1
USEFUL = 0.5


@dataclass(frozen=True)
class LeftOut:
    """How many support examples were classified correctly by all others.

    Attributes:
        measured: the number of examples that were left out, each once.
        correct: how many of them got their own label.
        chance: the share of the most frequent class among them, the accuracy of always naming it.
    """

    measured: int
    correct: int
    chance: float

    @classmethod
    def of(cls, logits: Tensor, y: Tensor) -> LeftOut:
        """Return the counts of held-out logits (N, ways) with their labels (N,)."""
        largest = int(y.bincount().max()) if len(y) else 0
        correct = int((logits.argmax(1) == y).sum())
        return cls(len(y), correct, largest / max(1, len(y)))

    @property
    def accuracy(self) -> float | None:
        """The accuracy, or None if nothing was measured."""
        return self.correct / self.measured if self.measured else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy by Clopper and Pearson (1934), or None."""
        from scipy.special import betaincinv

        n, k = self.measured, self.correct
        if not n:
            return None
        low = float(betaincinv(k, n - k + 1, 0.025)) if k else 0.0
        return low, float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0

    @property
    def near_chance(self) -> bool:
        """Whether the model hardly does better than guessing, as binomial tests find.

        The count is not significantly above what a model near chance would reach, and is
        significantly below what a useful model would reach. Few examples cannot show both.
        """
        from scipy.special import bdtr, bdtrc

        def between(share: float) -> float:
            return self.chance + share * (1 - self.chance)

        if not self.measured or self.chance == 1:
            return False
        # The probability of as many or more, and of as many or fewer.
        n, k = self.measured, self.correct
        above = 1.0 if k == 0 else float(bdtrc(k - 1, n, between(NEAR)))
        return above > RISK and float(bdtr(k, n, between(USEFUL))) < RISK
