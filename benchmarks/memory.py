"""Similarities with candidates in a bank: from a product with all of it, or from gathered rows.

python benchmarks/memory.py [--rounds 5] [--sizes CIFAR ImageNet]

Forward and gradient of one direction of CRD: 16,384 negatives, 128 dimensions, random vectors. Both
forms take turns in one process: medians, and the ratio product / gathered as median
(minimum-maximum). CPU seconds are those of all threads, and hardly depend on what else runs. Memory
is what a form adds to the peak of the process (Linux).
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.losses import peak
from crd.memory import GatheredSimilarity

SIZES = {"CIFAR": (64, 50_000), "ImageNet": (256, 1_281_167)}  # batch, samples
CANDIDATES, DIM, TEMPERATURE = 16_385, 128, 0.07


def forms(batch: int, samples: int):
    """Product and gathered form: each call is a forward pass and a gradient."""
    torch.manual_seed(0)
    bank = F.normalize(torch.randn(samples, DIM), dim=1)
    z = (F.normalize(torch.randn(batch, DIM), dim=1) / TEMPERATURE).requires_grad_()
    index = torch.randint(samples, (batch, CANDIDATES))

    def step(similarity):
        found = similarity(z)  # (B, C)
        loss = F.softplus(found).mean() - found[:, 0].mean()
        torch.autograd.grad(loss, z)

    return [
        lambda: step(lambda z: (z @ bank.T).gather(1, index)),
        lambda: step(lambda z: GatheredSimilarity.apply(z, bank, index)),
    ]


def measure(step) -> tuple[float, float, float]:
    """Seconds, CPU seconds and added MB of a call."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - start, time.process_time() - cpu, peak() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| size | | product | gathered | product / gathered |\n| --- | --- | --- | --- | --- |")
    for size in options.sizes:
        both = forms(*SIZES[size])
        rounds = [[measure(step) for step in both] for _ in range(1 + options.rounds)][1:]
        for i, what in enumerate(("s", "CPU s", "MB")):
            pairs = [(product[i], gathered[i]) for product, gathered in rounds]
            a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratios = [a / b for a, b in pairs]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(f"| {size} | {what} | {a:.3g} | {b:.3g} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
