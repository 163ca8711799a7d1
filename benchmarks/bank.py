"""What a bank of the teacher's rows is worth: a step, the rows of later runs, a small table.

python benchmarks/bank.py [--rounds 9] [--epochs 20 | --skip_table]

Steps alternate the live teacher and a complete bank in one process: median milliseconds of a
training step of 64 images of 32x32 in 100 classes, and the ratio live / banked as median
(minimum-maximum) over the rounds. The share of rows missing is counted from the views that three
seeds show in 240 epochs. The table is 4 methods x 2 trials of train_student.py on digits, one
command after another, with and without --teacher_bank.
"""

import argparse
import itertools
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.objective import kd_and_method, method_setup
from cli.parse import parse_student
from cli.setting import make_network
from dataset import DATASETS
from dataset.loader import Loader, Loading
from engine.bank import Bank
from engine.device import Numerics
from engine.objective import Distillation
from engine.recipe import Schedule
from engine.stage import main_stage
from engine.teacher import BankedTeacher, LiveTeacher, rows_read

CASES = (
    "--distill kd --model_t resnet32x4 --model_s resnet8x4",
    "--distill crd --model_t resnet32x4 --model_s resnet8x4",
    "--distill kd --model_t wrn_40_2 --model_s wrn_16_2",
)
TABLE = ("kd", "dkd", "rkd", "crd -a 1 --nce_k 256")
ROOT = Path(__file__).resolve().parent.parent
IMAGES = 1024
NUMERICS = Numerics(torch.device("cpu"))


def stepper(line: str, folder: str, banked: bool):
    """A function that does one training step of a command line."""
    torch.manual_seed(0)
    options = parse_student([*line.split(), "--dataset", "fake"])
    source = DATASETS["fake"]
    data = source.load(source.Options(fake_size=IMAGES, fake_classes=100))
    train = Loader(data, "train", 64, Loading())
    student, network = (make_network(name, data) for name in (options.model_s, options.model_t))
    setup = method_setup(student, network, 32, train)
    kd, method = kd_and_method(options, setup)
    if banked:
        reads = rows_read([kd] * bool(options.alpha) + [method] * bool(options.beta))
        key = {"samples": IMAGES, "views": train.views, "type": "float32", "line": line}
        bank = Bank(Path(folder) / str(len(line)), key, reads.widths(setup.teacher))
        teacher = BankedTeacher(network, NUMERICS, train, reads, bank, 64)
    else:
        teacher = LiveTeacher(network, NUMERICS)
    task = Distillation(student, teacher, kd, method, options.distill, options).train()
    task.begin_epoch(1, 1, 1)
    optimizer = main_stage(task, Schedule(0.05), options).optimizer
    batches = itertools.cycle(list(train.batches(1)))

    def step():
        output = task(next(batches))
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()

    return step


def milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def time_steps(rounds: int) -> None:
    """Print a row for each case."""
    print("| objective | live, ms | banked, ms | live / banked |\n| --- | --- | --- | --- |")
    for line in CASES:
        with tempfile.TemporaryDirectory() as folder:
            live, banked = (stepper(line, folder, banked) for banked in (False, True))
            live(), banked()
            pairs = [(milliseconds(live), milliseconds(banked)) for _ in range(rounds)]
        ratios = [a / b for a, b in pairs]
        before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"| {line} | {before:.0f} | {after:.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) |",
            flush=True,
        )


def count_missing(epochs: int = 240) -> None:
    """Print which share of the teacher's passes each of three runs still needs."""
    source = DATASETS["fake"]
    data = source.load(source.Options(fake_size=IMAGES, image_size=32))
    there = torch.zeros(IMAGES * 162, dtype=torch.bool)
    shares = []
    for seed in (1, 2, 3):
        train, missing = Loader(data, "train", 64, Loading(seed)), 0
        for epoch in range(1, epochs + 1):
            rows = torch.arange(IMAGES) * train.views + train.epoch_views(epoch)
            missing += int((~there[rows]).sum())
            there[rows] = True
        shares.append(missing / (IMAGES * epochs))
    print(
        f"\nrows missing in runs 1, 2, 3 of {epochs} epochs: "
        + ", ".join(f"{s:.2f}" for s in shares)
    )


def time_table(epochs: int) -> None:
    """Print how long a small table takes, live and with a bank."""
    flags = "--dataset digits --image_size 32"
    with tempfile.TemporaryDirectory() as folder:
        save = Path(folder)
        script(f"train_teacher.py --model resnet32x4 {flags} --epochs 2 --save_dir {save}")
        (teacher,) = save.glob("models/*/resnet32x4_last.pth")
        runs = [f"--distill {m} --trial {trial}" for trial in (1, 2) for m in TABLE]
        seconds = {}
        for name, more in (("live", ""), ("banked", f"--teacher_bank {save}/bank")):
            start = time.perf_counter()
            for run in runs:
                script(
                    f"train_student.py --path_t {teacher} --model_s resnet8x4 {flags} {run} {more} "
                    f"--epochs {epochs} "
                    f"--save_dir {save}/{name}"
                )
            seconds[name] = time.perf_counter() - start
    live, banked = seconds["live"], seconds["banked"]
    print(
        f"\n{len(runs)} runs of {epochs} epochs on digits: {live:.0f} s live, {banked:.0f} s "
        f"banked, the filling included: {live / banked:.2f} times"
    )


def script(line: str) -> None:
    """Run one of the scripts."""
    subprocess.run([sys.executable, *shlex.split(line)], cwd=ROOT, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=20, help="of a run of the table")
    parser.add_argument("--skip_table", action="store_true")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    time_steps(options.rounds)
    count_missing()
    if not options.skip_table:
        time_table(options.epochs)


if __name__ == "__main__":
    main()
