"""Evaluating: from images, from features, and on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import metazoo
from metazoo import EpisodeSampler, Examples
from metazoo.algorithms.protonet import ProtoNet
from metazoo.evaluation.measure import evaluate

from . import rivals
from .harness import OURS, Bench, Call, Way

WAYS, SHOTS, QUERIES = 5, 1, 15
# A tie between two classes may be decided by rounding: one query of a task.
ONE_QUERY = 1.5 / (WAYS * QUERIES)
UNCACHED, EASYFSL = f"{OURS}, cache=False", "easyfsl, cached features"
WIDTH, CLASSES, EACH = 64, 1600, 20


def run(bench: Bench) -> None:
    bench.work = f"evaluation on {WAYS}-way {SHOTS}-shot {QUERIES}-query tasks"
    with bench.part("10,000 tasks, features on the device"):
        resident(bench)
    if not bench.cuda:
        with bench.part("protonet.omniglot, 10,000 tasks"):
            from_images(bench)


def from_images(bench: Bench) -> None:
    """Evaluate a pretrained protonet on all characters of Omniglot."""
    tasks, few = bench.pick(10_000, 20), bench.pick(100, 5)
    examples = rivals.characters(bench.pick(1623, 40))
    model = metazoo.load("protonet.omniglot")
    sampler = EpisodeSampler(examples, WAYS, SHOTS, QUERIES)
    expected = evaluate(model, sampler, few)

    plain = rivals.plain_network(model.backbone.blocks).eval()
    networks = {order: rivals.ordered(plain, order) for order in rivals.ORDERS}
    loops = {order: plain_loop(network, sampler, few) for order, network in networks.items()}
    order, loop = bench.quickest(loops)
    sample = f"measured on {few} tasks"
    ways = {
        OURS: Way(lambda: evaluate(model, sampler, tasks)),
        UNCACHED: Way(lambda: evaluate(model, sampler, few, cache=False), sample, few / tasks),
        "plain loop over tasks": Way(loop, f"ordinary Conv4, {order}, {sample}", few / tasks),
    }
    with bench.rival(EASYFSL):
        library, network = rivals.easyfsl(), networks[order]
        classifier = library.methods.PrototypicalNetworks()
        features = rivals.features_of(network, examples)
        theirs = easyfsl(library, classifier, features, few, rivals.Tasks(sampler, 0, few))
        bench.check(f"{EASYFSL}: the mean accuracy", abs(theirs - expected.mean().item()), 1e-3)
        ways[EASYFSL] = Way(
            lambda: easyfsl(library, classifier, rivals.features_of(network, examples), tasks),
            f"each image embedded once by the ordinary Conv4, {order}",
        )
    bench.race(
        ways, unit="s", rounds=3, error=lambda values: worst(values, expected), limit=ONE_QUERY
    )


def worst(values: Tensor | float, expected: Tensor) -> float:
    """Return how far a task's accuracy is off, the worst of those that both have.

    easyfsl returns the mean over tasks of its own; it is checked before, on the same tasks.
    """
    if not isinstance(values, Tensor):
        return 0.0
    both = min(len(values), len(expected))
    return (values[:both].cpu() - expected[:both]).abs().max().item()


def easyfsl(
    library: SimpleNamespace,
    classifier: nn.Module,
    features: Examples,
    count: int,
    tasks: rivals.Tasks | None = None,
) -> float:
    """Return the accuracy of easyfsl's evaluation, on its own sampler's tasks or on those given."""
    items = library.features(rivals.labels_of(features), features.x, list(features.names))
    sampler = library.sampler(items, WAYS, SHOTS, QUERIES, count)
    collate = sampler.episodic_collate_fn
    loader = DataLoader(items, batch_sampler=tasks or sampler, collate_fn=collate)
    return library.evaluate(classifier, loader, device="cpu", use_tqdm=False)


def plain_loop(network: nn.Module, sampler: EpisodeSampler, count: int) -> Call:
    """Return the loop that embeds the images of each task and compares queries with prototypes."""

    @torch.no_grad()
    def loop() -> Tensor:
        accuracies = []
        for i in range(count):
            support_x, _, query_x, query_y = rivals.only_task(sampler.draw(i, 1))
            z = network(torch.cat([support_x, query_x]))
            prototypes = z[: WAYS * SHOTS].view(WAYS, SHOTS, -1).mean(1)
            right = torch.cdist(z[WAYS * SHOTS :], prototypes).argmin(1) == query_y
            accuracies.append(right.float().mean())
        return torch.stack(accuracies)

    return loop


def made_features() -> Examples:
    """Return made-up features, with classes so close that some queries are mistaken."""
    torch.manual_seed(0)
    noise = 0.5 * WIDTH**0.5 * torch.randn(CLASSES, EACH, WIDTH)
    x = (torch.randn(CLASSES, 1, WIDTH) + noise).flatten(0, 1)
    return Examples(x, (EACH,) * CLASSES, tuple(map(str, range(CLASSES))))


@torch.no_grad()
def plain(x: Tensor, rows: Tensor) -> Tensor:
    """Return accuracies from the rows of each task's features (tasks, ways, shots + queries)."""
    labels = torch.arange(WAYS, device=x.device).repeat_interleave(QUERIES)
    scores = []
    for some in rows.split(1000):
        z = x[some]
        distance = torch.cdist(z[:, :, SHOTS:].flatten(1, 2), z[:, :, :SHOTS].mean(2))
        scores.append((distance.argmin(-1) == labels).float().mean(1))
    return torch.cat(scores)


def resident(bench: Bench) -> None:
    """Evaluate on features that lie on the device. The goal on a GPU is 0.1 s."""
    count, few = bench.pick(10_000, 200), bench.pick(500, 20)
    examples = made_features().to(bench.device)
    model = ProtoNet(rivals.Given(WIDTH), metazoo.TaskSpec((WIDTH,), WAYS)).to(bench.device)

    def sampler() -> EpisodeSampler:
        return EpisodeSampler(examples, WAYS, SHOTS, QUERIES)  # a new one draws everything again

    rows = sampler().rows(0, count).to(bench.device)
    expected = plain(examples.x.double(), rows).cpu()

    ways = {
        OURS: Way(lambda: evaluate(model, sampler(), count, bench.device)),
        "cdist": Way(lambda: plain(examples.x, rows).cpu(), "tasks drawn before"),
    }
    if not bench.cuda:
        with bench.rival("easyfsl"):
            library = rivals.easyfsl()
            classifier = library.methods.PrototypicalNetworks()
            theirs = easyfsl(library, classifier, examples, few, rivals.Tasks(sampler(), 0, few))
            mean = expected[:few].mean().item()
            bench.check("easyfsl: the mean accuracy", abs(theirs - mean), 1e-3)
            ways["easyfsl"] = Way(
                lambda: easyfsl(library, classifier, examples, few),
                f"measured on {few} tasks of its own sampler",
                few / count,
            )
    bench.race(
        ways, unit="s", rounds=5, error=lambda values: worst(values, expected), limit=ONE_QUERY
    )
