"""Run every kernel on small, odd, empty and strided inputs in every dtype, and check the answers.

    compute-sanitizer --tool memcheck --error-exitcode 99 python -m benchmarks.sanitize
    METAZOO_KERNELS=emulated python -m benchmarks.sanitize --device cpu

Inputs are made and answers judged on the CPU in float64, so that the device runs little besides
metazoo's kernels. PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives each tensor an allocation of its own, so
that a step beyond its end is seen. Exits with 1 if an answer is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo import ops
from metazoo.kernels.loading import covers, load, status

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# (B, Q, N, D): one of each, odd sizes, sizes on both sides of 32, and each dimension empty.
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
# Shapes of one task's tensors; the last tensor is empty.
TENSORS = [[(3,)], [(5, 1, 3, 3), (5,), (1,)], [(64, 3), (129,), (2, 2), (0,)]]
# Momentum, weight decay, norm to clip to.
EXTRAS = [(0.0, 0.0, None), (0.9, 0.0, None), (0.9, 0.1, 0.5)]


class Check:
    """Compares answers with those in float64, and keeps the wrong ones."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.done = 0
        self.wrong: list[str] = []

    def close(self, label: str, got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
        self.done += 1
        if got.shape != expected.shape:
            self.wrong.append(f"{label}: shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        elif got.numel():
            off = (got.detach().cpu().double() - expected.detach()).abs().max()
            error = off / expected.abs().max().clamp_min(1e-3)
            if not error <= TOLERANCE[dtype]:
                self.wrong.append(f"{label}: off by {error:.1e}")

    def run(self, label: str, test: Callable[[str], None]) -> None:
        """Run a test; an exception counts as a wrong answer. After a fault, the first one matters."""
        try:
            test(label)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:200]
            self.wrong.append(f"{label}: {type(error).__name__}: {first}")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def laid_out(layout: str, *shape: int) -> Tensor:
    """Return random numbers (float64) of a shape, in memory as the layout says."""
    if layout == "transposed":
        return normal(*shape[:-2], shape[-1], shape[-2]).mT
    if layout == "sliced":
        return normal(*(2 * size + 1 for size in shape))[tuple(slice(1, None, 2) for _ in shape)]
    return normal(1, *shape[1:]).expand(shape) if layout == "expanded" else normal(*shape)


def on(device: torch.device, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a leaf with the strides of x on the device, and its values in float64."""
    if 0 in x.shape:
        moved = x.to(device, dtype)
    elif 0 in x.stride():
        moved = x[:1].to(device, dtype).expand(x.shape)
    else:
        moved = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device).copy_(x)
    wide = moved.detach().cpu().double().contiguous()
    return moved.detach().requires_grad_(), wide.requires_grad_()


def compare(
    check: Check, dtype: torch.dtype, label: str, ours: Callable[..., Tensor],
    exact: Callable[..., Tensor], *pairs: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    """Check an operator's answer without derivatives, and the gradients of a weighted sum of it."""
    own, wide = zip(*pairs)
    expected = exact(*wide)
    with torch.no_grad():
        check.close(label, ours(*own), expected, dtype)
    weight = torch.rand(expected.shape, dtype=torch.float64)
    got = ours(*own)
    slopes = torch.autograd.grad((got * weight.to(got)).sum(), own)
    for name, slope, true in zip(
        "xy", slopes, torch.autograd.grad((expected * weight).sum(), wide)
    ):
        check.close(f"{label}, gradient of {name}", slope, true, dtype)


def exact_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)


def distances(check: Check) -> None:
    """Check distances and their gradients."""
    for dtype, (b, q, n, d), layout in itertools.product(TOLERANCE, SHAPES, LAYOUTS):

        def test(label: str, b=b, q=q, n=n, d=d, layout=layout, dtype=dtype) -> None:
            pairs = [on(check.device, laid_out(layout, b, size, d), dtype) for size in (q, n)]
            compare(check, dtype, label, ops.pairwise_sqdist, exact_distances, *pairs)

        check.run(f"pairwise_sqdist {dtype} {(b, q, n, d)} {layout}", test)


def losses(check: Check) -> None:
    """Check the prototypical loss and its gradients; the mean over no queries is not a number."""
    for dtype, (b, q, n, d), layout in itertools.product(TOLERANCE, SHAPES, LAYOUTS):

        def test(label: str, b=b, q=q, n=n, d=d, layout=layout, dtype=dtype) -> None:
            scale, target = max(d, 1) ** -0.5, torch.randint(n, (b, q))  # no probability is 1
            pairs = [on(check.device, scale * laid_out(layout, b, k, d), dtype) for k in (q, n)]
            there = target.to(check.device)

            def exact(x: Tensor, y: Tensor) -> Tensor:
                return F.cross_entropy(-exact_distances(x, y).flatten(0, 1), target.flatten())

            ours = lambda x, y: ops.prototypical_nll(x, y, there)  # noqa: E731
            compare(check, dtype, label, ours, exact, *pairs)

        if b and q and n:
            check.run(f"prototypical_nll {dtype} {(b, q, n, d)} {layout}", test)


def exact_update(
    params: Tensor, grads: Tensor, lr: float | Tensor, velocity: Tensor,
    momentum: float, decay: float, max_norm: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what torch.optim.SGD does after each task's gradient is clipped to a norm."""
    if max_norm is not None:
        norm = grads.norm(dim=-1, keepdim=True)
        grads = grads * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    velocity = momentum * velocity + grads + decay * params
    return params - lr * velocity, velocity


def updates(check: Check) -> None:
    """Check inner steps with every kind of rate, momentum, weight decay and clipping."""
    for dtype, tasks, shapes, extra in itertools.product(TOLERANCE, (1, 3, 0), TENSORS, EXTRAS):
        size = sum(torch.Size(shape).numel() for shape in shapes)
        rates = {"number": 0.3, "per task and parameter": torch.rand(tasks, size)}
        if dtype == torch.float32:  # the rate's shape and the dtype are handled separately
            rates |= {"per task": torch.rand(tasks, 1), "per parameter": torch.rand(size)}
        for kind, rate in rates.items():
            label = f"sgd_update {dtype}, {tasks} tasks of {size}, rate {kind}, {extra}"
            pieces = [normal(tasks, *shape).to(check.device, dtype) for shape in shapes]
            check.run(
                label, lambda label, p=pieces, r=rate, e=extra: update(check, label, p, r, *e)
            )


def update(
    check: Check, label: str, pieces: list[Tensor], lr: float | Tensor,
    momentum: float, decay: float, max_norm: float | None,
) -> None:  # fmt: skip
    """Check a step given its gradients flat, in pieces and in strided pieces, and the same in place."""
    flat, dtype = torch.cat([p.flatten(1) for p in pieces], 1), pieces[0].dtype
    start, speed = (normal(*flat.shape).to(flat) for _ in range(2))
    rate = lr.to(flat) if isinstance(lr, Tensor) else lr
    wide = [t.cpu().double() if isinstance(t, Tensor) else t for t in (start, flat, rate, speed)]
    wide[3] = wide[3] if momentum else torch.zeros_like(wide[3])
    expected, expected_speed = exact_update(*wide, momentum, decay, max_norm)
    options = {"weight_decay": decay, "max_norm": max_norm}
    strided = [torch.stack([p, p], -1)[..., 0] for p in pieces]
    for how, grads in (("flat", flat), ("list", pieces), ("strided list", strided)):
        own, own_speed = start.clone(), speed.clone()
        more, in_place = (
            {"momentum": momentum, "velocity": v} if momentum else {} for v in (speed, own_speed)
        )
        got = ops.sgd_update(start, grads, rate, **more, **options)
        with torch.no_grad():
            ops.sgd_update_(own, grads, rate, **in_place, **options)
        if momentum:
            got, got_speed = got
            check.close(f"{label}, {how}, velocity", got_speed, expected_speed, dtype)
            check.close(f"{label}, {how}, velocity in place", own_speed, expected_speed, dtype)
        check.close(f"{label}, {how}", got, expected, dtype)
        check.close(f"{label}, {how}, in place", own, expected, dtype)
    if len(flat) == 1 and not isinstance(lr, Tensor) and not momentum:
        got = ops.sgd_update(start[0], [p[0] for p in pieces], rate, **options)
        check.close(f"{label}, without a task dimension", got, expected[0], dtype)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        print(
            "error: there is no CUDA device\nhint: use --device cpu with METAZOO_KERNELS=emulated",
            file=sys.stderr,
        )
        return 1
    if covers(device) and not load():
        print("error: the kernels did not load\nhint: the warning above says why", file=sys.stderr)
        return 1
    found = status()
    origin = found.origin if found.loaded and covers(device) else "plain PyTorch"
    print(f"kernels: {found.mode}, {origin}", flush=True)
    torch.manual_seed(0)
    check = Check(device)
    for part in (distances, losses, updates):
        done, wrong = check.done, len(check.wrong)
        part(check)
        done, wrong = check.done - done, len(check.wrong) - wrong
        print(f"{part.__name__}: {done} answers checked, {wrong} wrong", flush=True)
    print("\n".join(f"WRONG {line}" for line in check.wrong[:40]))
    return 1 if check.wrong or not check.done else 0


if __name__ == "__main__":
    sys.exit(main())
