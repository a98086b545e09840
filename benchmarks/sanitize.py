"""Runs every kernel on small, odd, empty and non-contiguous inputs in every dtype and checks the answers.

    compute-sanitizer --tool memcheck --error-exitcode 99 python -m benchmarks.sanitize
    METAZOO_KERNELS=emulated python -m benchmarks.sanitize --device cpu

Inputs are made, and answers judged, on the CPU in float64, so that little but metazoo's kernels runs on the device.
With PYTORCH_NO_CUDA_MEMORY_CACHING=1 every tensor is an allocation of its own, and a step beyond its end is seen.
Prints what was checked; ends with status 1 where an answer is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo import ops
from metazoo.kernels.loading import covers, load, status

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# (B, Q, N, D): one of everything, odd ones, either side of 32, and each dimension empty.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 15, 5, 64),
    (1, 33, 31, 65),
    (2, 4, 33, 130),
    (1, 2, 70, 3),
    (0, 3, 4, 5),
    (2, 0, 4, 5),
    (2, 3, 0, 5),
    (2, 3, 4, 0),
]
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")
# Shapes of one task's tensors; the last holds none of its numbers.
TENSORS = [[(3,)], [(5, 1, 3, 3), (5,), (1,)], [(64, 3), (129,), (2, 2), (0,)]]


class Check:
    """Compares answers, and remembers the wrong ones."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.done = 0
        self.wrong: list[str] = []

    def close(self, label: str, got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
        """Compare with an answer in float64, relative to the largest number in it."""
        self.done += 1
        if got.shape != expected.shape:
            self.wrong.append(
                f"{label}: the shape is {tuple(got.shape)}, not {tuple(expected.shape)}"
            )
        elif got.numel():
            error = (
                got.detach().cpu().double() - expected
            ).abs().max() / expected.abs().max().clamp_min(1e-3)
            if not error <= TOLERANCE[dtype]:
                self.wrong.append(f"{label}: off by {error:.1e}")

    def runs(self, label: str, test: Callable[[], None]) -> None:
        """Run a test; that it raises is an answer, too, and a wrong one."""
        try:
            test()
        except Exception as error:
            # After a fault of the device every further call raises: the first line of all is the one to read.
            self.wrong.append(
                f"{label}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            )


def laid_out(layout: str, *shape: int) -> Tensor:
    """Return random numbers (float64) of a shape, in memory as the layout says."""
    if layout == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=torch.float64).mT
    if layout == "sliced":
        return torch.randn(*(2 * size + 1 for size in shape), dtype=torch.float64)[
            tuple(slice(1, None, 2) for _ in shape)
        ]
    if layout == "expanded":
        return torch.randn(1, *shape[1:], dtype=torch.float64).expand(shape)
    return torch.randn(*shape, dtype=torch.float64)


def on(device: torch.device, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a leaf with the strides of x on the device, and what it holds in float64."""
    moved = (
        torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device)
        if 0 not in x.shape
        else x.to(device, dtype)
    )
    if 0 in x.stride():
        moved = x[:1].to(device, dtype).expand(x.shape)
    else:
        moved.copy_(x)
    return (
        moved.detach().requires_grad_(),
        moved.detach().cpu().double().contiguous().requires_grad_(),
    )


def exact_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)


def exact_loss(x: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(-exact_distances(x, y).flatten(0, 1), target.flatten())


def distances(check: Check) -> None:
    """Distances, and their gradients where the answer is used."""
    for dtype, shape, layout in itertools.product(TOLERANCE, SHAPES, LAYOUTS):
        b, q, n, d = shape
        label = f"pairwise_sqdist {dtype} {shape} {layout}"

        def test(b=b, q=q, n=n, d=d, layout=layout, dtype=dtype, label=label) -> None:
            x, wide_x = on(check.device, laid_out(layout, b, q, d), dtype)
            y, wide_y = on(check.device, laid_out(layout, b, n, d), dtype)
            with torch.no_grad():
                check.close(
                    label,
                    ops.pairwise_sqdist(x, y),
                    exact_distances(wide_x, wide_y).detach(),
                    dtype,
                )
            got, expected = ops.pairwise_sqdist(x, y), exact_distances(wide_x, wide_y)
            weight = torch.rand(expected.shape, dtype=torch.float64)
            gradients = torch.autograd.grad((got * weight.to(got)).sum(), (x, y))
            for name, ours, theirs in zip(
                "xy", gradients, torch.autograd.grad((expected * weight).sum(), (wide_x, wide_y))
            ):
                check.close(f"{label}, gradient of {name}", ours, theirs, dtype)

        check.runs(label, test)


def losses(check: Check) -> None:
    """The loss and its gradients; the mean over no queries is no number, and is left out."""
    for dtype, shape, layout in itertools.product(TOLERANCE, SHAPES, LAYOUTS):
        b, q, n, d = shape
        label = f"prototypical_nll {dtype} {shape} {layout}"

        def test(b=b, q=q, n=n, d=d, layout=layout, dtype=dtype, label=label) -> None:
            # Small distances, so that no probability is all of it and gradients say something.
            x, wide_x = on(check.device, laid_out(layout, b, q, d) * max(d, 1) ** -0.5, dtype)
            y, wide_y = on(check.device, laid_out(layout, b, n, d) * max(d, 1) ** -0.5, dtype)
            target = torch.randint(n, (b, q))
            expected = exact_loss(wide_x, wide_y, target)
            with torch.no_grad():
                check.close(
                    label,
                    ops.prototypical_nll(x, y, target.to(check.device)),
                    expected.detach(),
                    dtype,
                )
            got = torch.autograd.grad(ops.prototypical_nll(x, y, target.to(check.device)), (x, y))
            for name, ours, theirs in zip(
                "xy", got, torch.autograd.grad(expected, (wide_x, wide_y))
            ):
                check.close(f"{label}, gradient of {name}", ours, theirs, dtype)

        if b and q and n:
            check.runs(label, test)


def rates(tasks: int, size: int) -> Iterator[tuple[str, float | Tensor]]:
    yield "a number", 0.3
    yield "per task", torch.rand(tasks, 1, dtype=torch.float64)
    yield "per parameter", torch.rand(size, dtype=torch.float64)
    yield "both", torch.rand(tasks, size, dtype=torch.float64)


def exact_update(
    params: Tensor,
    grads: Tensor,
    lr: float | Tensor,
    velocity: Tensor,
    momentum: float,
    decay: float,
    max_norm: float | None,
) -> tuple[Tensor, Tensor]:
    """Return what `torch.optim.SGD` does after the gradient of each task is clipped to a norm."""
    if max_norm is not None:
        norm = grads.norm(dim=-1, keepdim=True)
        grads = grads * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    grads = grads + decay * params
    velocity = momentum * velocity + grads
    return params - lr * velocity, velocity


def updates(check: Check) -> None:
    """Inner steps: gradients flat and in lists, every kind of rate, with and without momentum, decay and clipping."""
    extras = [(0.0, 0.0, None), (0.9, 0.0, None), (0.9, 0.1, 0.5)]
    for dtype, tasks, shapes, (momentum, decay, norm) in itertools.product(
        TOLERANCE, (1, 3, 0), TENSORS, extras
    ):
        pieces = [torch.randn(tasks, *shape, dtype=torch.float64) for shape in shapes]
        size = sum(
            p[:1].numel() if tasks else torch.Size(shape).numel()
            for p, shape in zip(pieces, shapes)
        )
        for kind, lr in rates(tasks, size):
            if dtype != torch.float32 and kind in ("per task", "per parameter"):
                continue  # the rate's shape and the type are handled apart
            label = f"sgd_update {dtype}, {tasks} tasks of {size}, rate {kind}, momentum {momentum}, decay {decay}, norm {norm}"
            check.runs(label, lambda p=pieces, lr=lr, m=momentum, w=decay, n=norm, d=dtype, label=label: _update(
                check, label, d, p, lr, m, w, n
            ))  # fmt: skip


def _update(
    check: Check, label: str, dtype: torch.dtype, pieces: Sequence[Tensor], lr: float | Tensor, momentum: float, decay: float,
    max_norm: float | None,
) -> None:  # fmt: skip
    """Check the update that is given the gradients flat, in pieces and in strided pieces, and the same in place."""
    tasks = len(pieces[0])
    moved = [p.to(check.device, dtype) for p in pieces]
    flat = torch.cat([p.flatten(1) for p in moved], 1)
    start, speed = (
        torch.randn(flat.shape, dtype=torch.float64).to(check.device, dtype) for _ in range(2)
    )
    rate = lr.to(check.device, dtype) if isinstance(lr, Tensor) else lr
    wide_rate = rate.cpu().double() if isinstance(rate, Tensor) else rate
    wide = [t.cpu().double() for t in (start, flat, speed)]
    expected, expected_speed = exact_update(
        wide[0], wide[1], wide_rate, wide[2], momentum, decay, max_norm
    )
    strided = [torch.stack([p, p], -1)[..., 0] for p in moved]
    options = {"weight_decay": decay, "max_norm": max_norm}
    for how, grads in (("flat", flat), ("list", moved), ("strided list", strided)):
        if momentum:
            got, got_speed = ops.sgd_update(
                start, grads, rate, velocity=speed, momentum=momentum, **options
            )
            check.close(f"{label}, {how}, velocity", got_speed, expected_speed, dtype)
        else:
            got = ops.sgd_update(start, grads, rate, **options)
            expected = exact_update(
                wide[0], wide[1], wide_rate, torch.zeros_like(wide[2]), 0.0, decay, max_norm
            )[0]
        check.close(f"{label}, {how}", got, expected, dtype)
        own, own_speed = start.clone(), speed.clone()
        with torch.no_grad():
            more = {"velocity": own_speed, "momentum": momentum} if momentum else {}
            ops.sgd_update_(own, grads, rate, **more, **options)
        check.close(f"{label}, {how}, in place", own, expected, dtype)
        if momentum:
            check.close(f"{label}, {how}, velocity in place", own_speed, expected_speed, dtype)
    if tasks == 1 and not isinstance(lr, Tensor) and not momentum:
        # One task's parameters alone, (P,).
        got = ops.sgd_update(start[0], [p[0] for p in moved], rate, **options)
        check.close(f"{label}, without a task dimension", got, expected[0], dtype)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: there is no CUDA device\nhint: --device cpu with METAZOO_KERNELS=emulated",
            file=sys.stderr,
        )
        return 1
    if covers(options.device) and not load():
        print(
            "error: the kernels are not loaded, so there is nothing to check\nhint: see the warning above",
            file=sys.stderr,
        )
        return 1
    found = status()
    print(
        f"kernels: {found.mode}, {found.origin if found.loaded and covers(options.device) else 'plain PyTorch'}",
        flush=True,
    )
    torch.manual_seed(0)
    check = Check(options.device)
    for part in (distances, losses, updates):
        before, wrong = check.done, len(check.wrong)
        part(check)
        print(
            f"{part.__name__}: {check.done - before} answers checked, {len(check.wrong) - wrong} wrong",
            flush=True,
        )
    for line in check.wrong[:40]:
        print(f"WRONG {line}")
    return 1 if check.wrong or not check.done else 0


if __name__ == "__main__":
    sys.exit(main())
