"""The conformance suite: what every algorithm must keep to, for the built-ins and for the authors of plugins.

    from metazoo.testing import check_algorithm

    def test_conforms():
        check_algorithm("reptile")

It needs no test framework: a breach is an AssertionError whose message is a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from metazoo.base.algorithm import Algorithm
from metazoo.errors import OptionError
from metazoo.plugins.registry import registry
from metazoo.testing import checks
from metazoo.testing.made_tasks import Classification, Regression


def check_algorithm(
    algorithm: str | type[Algorithm], options: Mapping[str, Any] | None = None
) -> None:
    """Check that an algorithm, by registered name or as a class, keeps to the contract; `options` are values of its Config.

    Small made tasks of classes of 16x16 images are put to it (if it `regresses`, also tasks of numbers, unless it refuses the
    options for these), and these must hold:

    - its Config, recipe and `draws` can be read, and its options survive JSON;
    - `forward` takes support_x, support_y and query_x alone, so that no query label can enter it;
    - logits are finite and of shape (B, Q, ways) in training and eval mode, also with unequal shots in any order, and
      for another number of ways than trained with, unless that raises a MetazooError;
    - `loss` is a finite scalar, and every parameter that requires a gradient gets a finite one;
    - in eval mode `forward` answers the same twice, in whatever state the random generator is, and changes no
      parameter, buffer or gradient; `torch.no_grad()` makes no difference;
    - in eval mode a batch of tasks is answered as each task alone;
    - unless `transductive`, a query is answered the same whatever the other queries are;
    - in a FeatureLearner `forward` is `classify` of `features` in eval mode, and `embed` treats each example by itself;
    - a model with the same state_dict gives the same answers;
    - two training steps from one seed are equal bit for bit;
    - some training on fixed tasks, as the recipe says, makes their queries' loss fall.

    Raises AssertionError, saying which was broken and how.
    """
    if isinstance(algorithm, str):
        name, algorithm = algorithm, registry().algorithm(algorithm).value
    else:
        name = getattr(algorithm, "__qualname__", repr(algorithm))
    kinds = [Classification, Regression]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sharing out work as small as this takes longer than doing it
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            _run(name, checks.DECLARATION, algorithm, options or {})
            for kind in kinds if algorithm.regresses else kinds[:1]:
                case = kind(name, algorithm, options or {})
                if not (options and kind is Regression and _refuses(case)):
                    _run(name, checks.BEHAVIOUR, case)
    finally:
        torch.set_num_threads(threads)


def _refuses(case: Classification) -> bool:
    """Return whether an algorithm refuses the options for this kind of task, as it may those that are for images."""
    try:
        case.model()
    except OptionError:
        return True
    except Exception:
        pass  # a check will say so
    return False


def _run(name: str, checks: Sequence[Callable[..., None]], *arguments: Any) -> None:
    for check in checks:
        try:
            check(*arguments)
        except AssertionError as breach:
            raise AssertionError(f"algorithm '{name}': {breach}") from breach
        except Exception as error:
            promise = (check.__doc__ or "").splitlines()[0].rstrip(".")
            raise AssertionError(
                f"algorithm '{name}' raised {type(error).__name__} where this was checked: {promise}. It said: {error}"
            ) from error
