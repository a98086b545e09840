"""The conformance suite: checks that an algorithm keeps to the contract.

    from metazoo.testing import check_algorithm

    def test_conforms():
        check_algorithm("reptile")

It needs no test framework: a check that fails raises AssertionError. With pytest, each check can be
a test of its own:

    from metazoo.testing import algorithm_checks

    @pytest.mark.parametrize("check", algorithm_checks("reptile"))
    def test_conforms(check):
        check()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metazoo.base.algorithm import Algorithm
from metazoo.errors import OptionError
from metazoo.plugins.registry import registry
from metazoo.testing.checks import CLASS_CHECKS, MODEL_CHECKS
from metazoo.testing.made_tasks import BuildBackbone, ClassificationCase, RegressionCase


@dataclass(frozen=True)
class Check:
    """One check of an algorithm; calling it raises AssertionError if the algorithm fails."""

    algorithm: str
    name: str
    check: Callable[..., None]
    arguments: tuple[Any, ...]

    @property
    def __name__(self) -> str:
        """The name, where pytest looks for the id of a test."""
        return self.name

    def __call__(self) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # faster for networks as small as these
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                self.check(*self.arguments)
        except AssertionError as failure:
            raise AssertionError(f"algorithm '{self.algorithm}': {failure}") from failure
        except Exception as error:
            rule = (self.check.__doc__ or "").splitlines()[0]
            raise AssertionError(
                f"algorithm '{self.algorithm}' raised {type(error).__name__}: {error}\n"
                f"  in the check `{self.name}`: {rule}"
            ) from error
        finally:
            torch.set_num_threads(threads)


def check_algorithm(
    algorithm: str | type[Algorithm],
    options: Mapping[str, Any] | None = None,
    *,
    backbone: str | BuildBackbone | None = None,
    examples: Tensor | None = None,
) -> None:
    """Check that an algorithm keeps to the contract.

    The checks build small models and train them on synthetic tasks: classes of 16x16 images and,
    if `supports_regression` is set, tasks with float targets. They require that

    - the Config and the recipe are valid, and the options survive a round trip through JSON;
    - `forward` takes support_x, support_y and query_x only, so that it never sees query labels;
    - logits are finite and of shape (B, Q, ways) in training and eval mode, also if classes have
      different numbers of shots;
    - tasks with another number of ways are answered, or refused with a MetazooError;
    - the training loss is a finite scalar, the mean over its tasks, and gives every trainable
      parameter a finite gradient;
    - in eval mode `forward` is deterministic, remembers nothing, and changes no input, parameter,
      buffer, gradient or setting of torch;
    - in eval mode the tasks of a batch do not affect each other;
    - unless `transductive` is True, the queries of a task do not affect each other;
    - answers do not depend on the order of the queries, nor, unless `depends_on_order` says so, on
      the order of the support examples or on which class has which label;
    - the `forward` of a FeatureLearner is `classify` applied to `features`;
    - a model that loads a state_dict answers like the model that saved it;
    - training with one seed gives the same weights every time;
    - training lowers the loss.

    A model without trainable parameters is not trained.

    Args:
        algorithm: a registered name or a class.
        options: values of its Config. If the algorithm refuses them for regression with an
            OptionError, only classification is checked.
        backbone: a registered name, a class, or a function of the shape of an example; by default
            a small conv4.
        examples: a few dozen examples (N, *) for `backbone`, such as token ids or images. Tasks are
            made by mixing them. With either argument only classification is checked.

    Raises:
        AssertionError: says which check failed and what to change.
    """
    for check in algorithm_checks(algorithm, options, backbone=backbone, examples=examples):
        check()


def algorithm_checks(
    algorithm: str | type[Algorithm],
    options: Mapping[str, Any] | None = None,
    *,
    backbone: str | BuildBackbone | None = None,
    examples: Tensor | None = None,
) -> list[Check]:
    """Return the checks of `check_algorithm`, which takes the same arguments, one by one."""
    if isinstance(algorithm, str):
        name, algorithm = algorithm, registry().algorithm(algorithm).value
    else:
        name = getattr(algorithm, "__qualname__", repr(algorithm))
    options = options or {}
    checks = [Check(name, check.__name__, check, (algorithm, options)) for check in CLASS_CHECKS]
    cases = {"": ClassificationCase(name, algorithm, options, backbone, examples)}
    if backbone is None and examples is None and getattr(algorithm, "supports_regression", False):
        case = RegressionCase(name, algorithm, options)
        if not (options and _refuses_options(case)):
            cases["-regression"] = case
    return checks + [
        Check(name, f"{check.__name__}{suffix}", check, (case,))
        for suffix, case in cases.items()
        for check in MODEL_CHECKS
    ]


def _refuses_options(case: ClassificationCase) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            case.model()
    except OptionError:
        return True
    except Exception:
        pass  # the checks report it
    return False
