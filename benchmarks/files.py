"""What a data set of 1.3 million image files costs before its first batch, and in each worker.

    python benchmarks/files.py

The files are hard links to one small JPEG a class. A process that has begun to train on them is
compared with one that has begun on a few: memory of a worker is what it shares with no other.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from dataset import DATASETS
from dataset.fingerprint import fingerprint
from dataset.loader import Loading
from dataset.stream import StreamLoader

CLASSES, FEW, BATCH = 1000, 20, 256


def make_files(root: Path, n: int) -> None:
    """n training images and as many of ImageNet's share to test on, of 1,000 classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for split, count in (("train", n // CLASSES), ("val", max(1, n // CLASSES // 26))):
        for c in range(CLASSES):
            folder = root / split / f"n{c:08}"
            folder.mkdir(parents=True)
            first = folder / f"n{c:08}_0.JPEG"
            Image.fromarray(pixels).save(first)
            for i in range(1, count):
                os.link(first, folder / f"n{c:08}_{i}.JPEG")


def begin(root: str, batches: int) -> None:
    """Print the seconds until training begins, and MB of a worker after some batches."""
    start = time.perf_counter()
    entry = DATASETS["imagenet"]
    data = entry.load(entry.Options(data_dir=root, image_size=32))
    listed = time.perf_counter()
    fingerprint(data)
    known = time.perf_counter()
    loader = StreamLoader(data, "train", BATCH, Loading(workers=1))
    epoch = loader.batches(1)
    next(epoch)
    begun = time.perf_counter()
    for _ in range(batches):
        next(epoch)
    (worker,) = children()
    seconds = listed - start, known - listed, begun - known, begun - start
    print(*seconds, private_megabytes(worker), private_megabytes(os.getpid()))


def children() -> list[int]:
    """Processes that this one has started."""
    return [
        int(pid)
        for pid in Path("/proc/self/task").glob("*/children")
        for pid in pid.read_text().split()
    ]


def private_megabytes(pid: int) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def measured(root: Path, batches: int) -> list[float]:
    """What `begin` prints, in a process of its own."""
    words = [sys.executable, __file__, "--begin", str(root), "--batches", str(batches)]
    return [float(word) for word in subprocess.check_output(words, text=True).split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", type=int, default=1_300_000, help="training images")
    parser.add_argument("--dir", help="where they are made, and removed again")
    parser.add_argument("--batches", type=int, default=100, help="batches that a worker reads")
    parser.add_argument(
        "--begin", help="a folder of images: begin to train on it, say what it took"
    )
    options = parser.parse_args()
    if options.begin:
        begin(options.begin, options.batches)
        return
    for n in (FEW * CLASSES, options.files):
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            make_files(Path(folder), n)
            listed, known, first, total, worker, main = measured(Path(folder), options.batches)
        print(f"{n:,} files: first batch after {total:.1f} s (files listed {listed:.1f}, ", end="")
        print(f"fingerprint {known:.1f}, loader {first:.1f}); ", end="")
        print(f"a worker {worker:.0f} MB, the main process {main:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
