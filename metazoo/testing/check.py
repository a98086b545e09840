"""The conformance suite: checks that an algorithm keeps to the contract.

    from metazoo.testing import check_algorithm

    def test_conforms():
        check_algorithm("reptile")

It needs no test framework: a check that fails raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from metazoo.base.algorithm import Algorithm
from metazoo.errors import OptionError
from metazoo.plugins.registry import registry
from metazoo.testing import checks
from metazoo.testing.made_tasks import ClassificationCase, RegressionCase


def check_algorithm(
    algorithm: str | type[Algorithm], options: Mapping[str, Any] | None = None
) -> None:
    """Check that an algorithm keeps to the contract.

    The checks build small models and train them on synthetic tasks: classes of 16x16 images and,
    if `supports_regression` is set, tasks with float targets. They require that

    - the Config and the recipe are valid, and the options survive a round trip through JSON;
    - `forward` takes support_x, support_y and query_x only, so that it never sees query labels;
    - logits are finite and of shape (B, Q, ways) in training and eval mode, also if classes have
      different numbers of shots;
    - tasks with another number of ways are answered, or refused with a MetazooError;
    - the training loss is a finite scalar and gives every trainable parameter a finite gradient;
    - in eval mode `forward` is deterministic and changes no parameter, buffer or gradient;
    - in eval mode the tasks of a batch do not affect each other;
    - unless `transductive` is True, the queries of a task do not affect each other;
    - the `forward` of a FeatureLearner is `classify` applied to `features`;
    - a model that loads a state_dict answers like the model that saved it;
    - training with one seed gives the same weights every time;
    - training lowers the loss.

    Args:
        algorithm: a registered name or a class.
        options: values of its Config. If the algorithm refuses them for regression with an
            OptionError, only classification is checked.

    Raises:
        AssertionError: says which check failed and what to change.
    """
    if isinstance(algorithm, str):
        name, algorithm = algorithm, registry().algorithm(algorithm).value
    else:
        name = getattr(algorithm, "__qualname__", repr(algorithm))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster for networks as small as these
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            _run(name, checks.CLASS_CHECKS, algorithm, options or {})
            _run(name, checks.MODEL_CHECKS, ClassificationCase(name, algorithm, options or {}))
            if algorithm.supports_regression:
                case = RegressionCase(name, algorithm, options or {})
                if not (options and _refuses_options(case)):
                    _run(name, checks.MODEL_CHECKS, case)
    finally:
        torch.set_num_threads(threads)


def _refuses_options(case: ClassificationCase) -> bool:
    try:
        case.model()
    except OptionError:
        return True
    except Exception:
        pass  # the checks report it
    return False


def _run(name: str, checks: Sequence[Callable[..., None]], *arguments: Any) -> None:
    for check in checks:
        try:
            check(*arguments)
        except AssertionError as failure:
            raise AssertionError(f"algorithm '{name}': {failure}") from failure
        except Exception as error:
            rule = (check.__doc__ or "").splitlines()[0]
            raise AssertionError(
                f"algorithm '{name}' raised {type(error).__name__}: {error}\n"
                f"  in the check `{check.__name__}`: {rule}"
            ) from error
