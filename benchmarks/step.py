"""What two choices of the engine are worth on a CPU: channels-last layout, small test batches.

python benchmarks/step.py [--networks resnet8 resnet32x4] [--rounds 7]

Each row alternates with and without the choice in one process: median milliseconds of a step, and
the ratio without / with as median (minimum-maximum) over the rounds. A training step is forward,
backward and SGD of a batch of 64 images of 32x32; an evaluation step is a teacher's forward pass.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import MODELS

NETWORKS = ("resnet8", "resnet20", "resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2")


def steps(name: str, layout: torch.memory_format):
    """A training step and an evaluation step of one network."""
    torch.manual_seed(0)
    network = MODELS[name](100).to(memory_format=layout)
    teacher = MODELS[name](100).to(memory_format=layout).eval()
    images = torch.randn(64, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(100, (64,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)

    def train():
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    @torch.no_grad()
    def evaluate():
        teacher(images)

    return {"train": train, "eval": evaluate}


def evaluation(name: str, batch_size: int):
    """The teacher's forward pass of 512 images of 32x32, in batches."""
    teacher = MODELS[name](100).to(memory_format=torch.channels_last).eval()
    images = torch.randn(512, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def evaluate():
        for batch in images.split(batch_size):
            teacher(batch)

    return evaluate


def milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def compare(label: str, without, with_it, rounds: int) -> None:
    """Alternate two functions and print a row."""
    without(), with_it()
    pairs = [(milliseconds(without), milliseconds(with_it)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    old, new = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"| {label} | {old:.0f} | {new:.0f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| choice | without, ms | with, ms | ratio |\n| --- | --- | --- | --- |")
    for name in options.networks:
        plain, last = steps(name, torch.contiguous_format), steps(name, torch.channels_last)
        for kind in ("train", "eval"):
            compare(f"channels last, {name} {kind}", plain[kind], last[kind], options.rounds)

        large, small = evaluation(name, 512), evaluation(name, 64)
        compare(f"batches of 64 instead of 512, {name} eval", large, small, options.rounds)


if __name__ == "__main__":
    main()
