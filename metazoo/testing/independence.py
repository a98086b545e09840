"""Checks of what answers may depend on: the first line of each docstring is the rule.

An answer depends on the support set, the query and, if the model is transductive, on the task's
other queries: not on their order, on other tasks, on earlier calls or on anything else.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from metazoo.tasks.episode import Episode
from metazoo.testing.comparing import close, predict, require
from metazoo.testing.made_tasks import ClassificationCase

TASKS = 8
QUERIES_PER_CLASS = 15  # 75 in a task
PARTS = (1, 2, 3, 5, 8, 41, 15)  # of 75 queries
CALLS = 50
# Adaptation with normalised steps, such as Adam's, amplifies rounding most.
AMPLIFIED = 1e-2
# Without a weight for each way nothing does, and a small preference for a label counts.
EXACT = 1e-4


def separates_tasks(case: ClassificationCase) -> None:
    """In eval mode the tasks of a batch do not affect each other."""
    model = case.trained_model()
    episode = case.episode(TASKS, shots=2, queries=QUERIES_PER_CLASS)
    together = predict(model, episode)
    for size in (1, 3):
        for i in range(0, TASKS, size):
            require(
                close(together[i : i + size], predict(model, episode[i : i + size])),
                "it answers a task differently when other tasks are in the batch; "
                "keep statistics and adapted weights per task",
            )


def separates_queries(case: ClassificationCase) -> None:
    """Unless `transductive` is True, the queries of a task do not affect each other."""
    model, episode = case.trained_model(), _many_queries(case)
    require(
        isinstance(model.transductive, bool),
        f"`transductive` is {model.transductive!r}; it must be True or False",
    )
    if model.transductive:
        return
    others = _many_queries(case, seed=2).query_x
    together = predict(model, episode)
    for rows in _parts(episode):
        replaced = others.clone()
        replaced[:, rows] = episode.query_x[:, rows]
        answers = predict(model, dataclasses.replace(episode, query_x=replaced))
        require(
            close(answers[:, rows], together[:, rows]),
            "the answer for a query changes when the other queries are replaced; "
            "set `transductive` to True, or treat each query independently",
        )


def ignores_the_order_of_queries(case: ClassificationCase) -> None:
    """In eval mode the queries in another order have the same answers."""
    model, episode = case.trained_model(), _many_queries(case)
    order = _order(episode.query_x.shape[1])
    permuted = dataclasses.replace(episode, query_x=episode.query_x[:, order])
    require(
        close(predict(model, permuted), predict(model, episode)[:, order]),
        "the answers change when the queries are given in another order; "
        "an answer must not depend on the query's position",
    )


def ignores_the_number_of_queries(case: ClassificationCase) -> None:
    """Unless `transductive` is True, a query has the same answer with and without the others."""
    model, episode = case.trained_model(), _many_queries(case)
    if model.transductive:
        return
    together = predict(model, episode)
    parts = _parts(episode)
    for rows in [*parts, *parts[-4].split(1)]:
        some = dataclasses.replace(episode, query_x=episode.query_x[:, rows])
        require(
            close(predict(model, some), together[:, rows]),
            "the answer for a query changes when the other queries are removed "
            f"({len(rows)} of {together.shape[1]} left); "
            "set `transductive` to True, or treat each query independently",
        )


def ignores_the_order_of_supports(case: ClassificationCase) -> None:
    """Unless declared in `depends_on_order`, the order of the support examples does not matter."""
    model = case.trained_model()
    unknown = set(model.depends_on_order) - {"support", "classes"}
    require(not unknown, f"`depends_on_order` names {unknown}; it may name 'support' and 'classes'")
    if "support" in model.depends_on_order:
        return
    for episode in (case.episode(), case.episode(shots=1), case.unequal()):
        order = _order(episode.support_x.shape[1])
        permuted = dataclasses.replace(
            episode,
            support_x=episode.support_x[:, order],
            support_y=episode.support_y[:, order],
        )
        require(
            close(predict(model, permuted), predict(model, episode), AMPLIFIED),
            "the answers change when the support examples are given in another order; "
            "take their classes from support_y, not from their positions, "
            "or return 'support' from `depends_on_order`",
        )


def treats_classes_alike(case: ClassificationCase) -> None:
    """Unless declared in `depends_on_order`, it does not matter which class has which label."""
    if _has_head(case):
        return
    for ways in (3, 7, 20):
        model = case.model(ways)
        if model.spec.regression or "classes" in model.depends_on_order:
            return
        model.eval()
        for episode in (case.episode(ways=ways), case.episode(ways=ways, shots=1)):
            order = _order(ways)
            relabelled = dataclasses.replace(episode, support_y=order[episode.support_y])
            require(
                close(predict(model, relabelled)[..., order], predict(model, episode), EXACT),
                "the answers change when the classes are given other labels; "
                "treat all labels alike, or return 'classes' from `depends_on_order`",
            )


def remembers_nothing(case: ClassificationCase) -> None:
    """In eval mode a task has the same answers after many other calls."""
    episodes = [case.episode(1, 2, 1, 2, seed) for seed in range(3)]
    first = [predict(case.trained_model(), episode) for episode in episodes]
    model = case.trained_model()
    for call in range(CALLS):
        i = call % len(episodes)
        require(
            torch.equal(predict(model, episodes[i]), first[i]),
            f"in eval mode it answers a task differently after other calls (in call {call + 1}); "
            "keep nothing from one call to the next, and draw random numbers from a generator "
            "with a fixed seed",
        )


def ignores_query_labels(case: ClassificationCase) -> None:
    """The labels of the queries have no effect on the answers."""
    model, episode = case.trained_model(), case.episode()
    other = (episode.query_y + 1) % 5 if not model.spec.regression else -episode.query_y
    require(
        close(predict(model, dataclasses.replace(episode, query_y=other)), predict(model, episode)),
        "the answers change with the labels of the queries, which it must not look for",
    )


def ignores_the_state_of_torch(case: ClassificationCase) -> None:
    """In eval mode torch's seed, gradient mode and number of threads do not affect the answers."""
    model, episode = case.trained_model(), case.episode(1, 2, 1, 2)
    before = predict(model, episode)
    torch.manual_seed(99)
    require(
        torch.equal(before, predict(model, episode)),
        "in eval mode the answers change with torch's seed; "
        "draw random numbers from a generator with a fixed seed",
    )
    with torch.enable_grad():
        with_gradients = model(episode.support_x, episode.support_y, episode.query_x)
    require(
        close(with_gradients, before), "in eval mode it answers differently under torch.no_grad()"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        answers = predict(model, episode)
    finally:
        torch.set_num_threads(threads)
    require(
        close(answers, before, 10 * AMPLIFIED),
        "it answers differently with another number of torch's threads",
    )


CHECKS = [
    remembers_nothing,
    ignores_the_state_of_torch,
    ignores_query_labels,
    separates_tasks,
    separates_queries,
    ignores_the_order_of_queries,
    ignores_the_number_of_queries,
    ignores_the_order_of_supports,
    treats_classes_alike,
]


def _order(count: int) -> Tensor:
    """Return a random order of `count` things that moves the first and the last."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return order.roll(1) if order[0] == 0 or order[-1] == count - 1 else order


def _many_queries(case: ClassificationCase, seed: int = 1) -> Episode:
    # One task: that it makes no difference is another check.
    return case.episode(tasks=1, shots=2, queries=QUERIES_PER_CLASS, seed=seed)


def _parts(episode: Episode) -> list[Tensor]:
    """Return rows of queries: each query in a part of some size, and some of them alone."""
    queries = episode.query_x.shape[1]
    parts = _order(queries).split(PARTS)
    # The ends too: an answer may depend only on the queries before it, or after it.
    ends = [torch.tensor([i]) for i in (0, queries // 2, queries - 1)]
    return [*parts, *ends]


def _has_head(case: ClassificationCase) -> bool:
    """Return whether a model has a weight for each way of its training tasks."""
    few, many = ([p.shape for p in case.model(ways).parameters()] for ways in (3, 7))
    return few != many
