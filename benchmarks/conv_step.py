"""Times one training step of Conv4 on a CPU in four ways, interleaved: `python benchmarks/conv_step.py`.

Weights contiguous or channels_last, memory given back to the kernel or kept. Each round runs every way in a process of its own:
malloc's settings last as long as the process. The ratios of medians are to the first way.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS, STEPS, IMAGES = 5, 8, 360
WAYS = [("contiguous", "returned"), ("channels_last", "returned"), ("contiguous", "kept"), ("channels_last", "kept")]


def measure(order: str, memory: str) -> float:
    """Return the median time of a step in this process, in seconds."""
    import torch

    from metazoo.backbones import Conv4
    from metazoo.cli.memory import keep_freed_memory

    if memory == "kept":
        keep_freed_memory()
    torch.manual_seed(0)
    network = Conv4((1, 28, 28)).to(memory_format=getattr(torch, f"{order}_format" if order == "contiguous" else order))
    x = torch.rand(IMAGES, 1, 28, 28)
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        network(x).square().mean().backward()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def main() -> None:
    from metazoo.runs import machine

    print(machine())
    times: dict[tuple[str, str], list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            run = subprocess.run([sys.executable, __file__, *way], check=True, capture_output=True, text=True)
            times[way].append(float(run.stdout))
    first = statistics.median(times[WAYS[0]])
    for way, values in times.items():
        middle = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{way[0]:14} memory {way[1]:9} {middle:.3f} s ({spread})  {middle / first:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1], sys.argv[2]))
    else:
        main()
