"""Images a second: this project's loader (A) against torchvision's pipeline in a DataLoader (B).

    python benchmarks/loader.py --rounds 5

Both deliver the 50,000 training images of a CIFAR-10-like set in batches of 64: padded by 4,
cropped to 32 x 32, mirrored, normalised. They take turns in one process, so that whatever else the
machine does disturbs both; a round's ratio compares neighbours in time. A third turn of each round
trains resnet8, the cheapest student, to see which share of a step the loader takes.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from dataset.base import DataSet, Split
from dataset.loader import Loader, Loading
from helper.vision import torchvision
from models import MODELS

N, BATCH, WORKERS, STEPS = 50_000, 64, 2, 100
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Pictures(Dataset):
    """What torchvision's CIFAR10 does for a sample: array, PIL image, transforms."""

    def __init__(self, data: DataSet):
        transforms = torchvision.transforms
        self.pixels = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, 32, 32, 3)
        self.labels = data.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


class Clock:
    """Seconds of a block, with the device's work finished at both ends."""

    def __init__(self, device: torch.device):
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def __enter__(self):
        self.wait()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.wait()
        self.seconds = time.perf_counter() - self.start


def random_data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8, generator=generator)
    train = Split(images, torch.randint(0, 10, (N,), generator=generator))
    return DataSet("random", train, train, tuple("0123456789"), MEAN, STD)


def trainer(device: torch.device):
    """A function that trains resnet8 for STEPS steps on one batch that is already there."""
    network = MODELS["resnet8"](10).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (BATCH,), device=device)

    def train():
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()

    return train


def spread(values: list[float], form: str) -> str:
    low, middle, high = (format(f(values), form) for f in (min, median, max))
    return f"{middle} (min {low}, max {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5, help="turns of A, B and training")
    parser.add_argument("--device", default="cpu", help="where the batches are wanted")
    options = parser.parse_args()
    device, data = torch.device(options.device), random_data()
    ours = Loader(data, "train", BATCH, Loading(device=device))
    theirs = DataLoader(
        Pictures(data),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    train = trainer(device)
    for _ in ours.batches(0):
        pass
    next(iter(theirs))  # starts the workers
    train()

    rows = []
    for epoch in range(options.rounds):
        with Clock(device) as a:
            for batch in ours.batches(epoch):
                images = batch.images
        with Clock(device) as b:
            for images, labels in theirs:
                images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with Clock(device) as step:
            train()
        share = 100 * (a.seconds / len(ours)) / (step.seconds / STEPS)
        rows.append((N / a.seconds, N / b.seconds, b.seconds / a.seconds, share, step.seconds))
        print(f"round {epoch + 1}: A {rows[-1][0]:,.0f}/s, B {rows[-1][1]:,.0f}/s", flush=True)
        assert images.shape[1:] == (3, 32, 32)

    a, b, ratio, share, step = map(list, zip(*rows))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"machine: {os.cpu_count()} cores, {name}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, torchvision {torchvision.__version__}"
    )
    print(f"A, this loader:        {spread(a, ',.0f')} images/s")
    print(f"B, torchvision:        {spread(b, ',.0f')} images/s, {WORKERS} workers")
    print(f"A / B:                 {spread(ratio, '.1f')}")
    print(
        f"resnet8, batch {BATCH}:     {spread([1000 * s / STEPS for s in step], '.2f')} ms a step"
    )
    print(f"A's share of a step:   {spread(share, '.2f')} %")


if __name__ == "__main__":
    main()
