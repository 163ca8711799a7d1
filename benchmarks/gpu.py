"""A training step on a GPU: as RepDistiller's loop has it, ours live, banked, and captured.

python benchmarks/gpu.py [--methods kd crd dkd rkd] [--amp off bf16] [--rounds 5] [--epochs 240]

Random images of 32x32 in 100 classes; batches and the bank's rows are there before. All ways take
turns in one process, `--steps` of each a round: median milliseconds a step, the ratio of the first
to the last as median (minimum-maximum) over the rounds, and what each adds to the GPU's memory at
its peak. RepDistiller's loop reads in each step what it measured, and is written out below.

With --epochs, KD by train_student.py as well, banked and captured: seconds of two seeds, of which
the second finds rows of the first. On a CPU nothing is captured.
"""

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.literal import crd, dkd, rkd
from cli.objective import kd_and_method, method_setup
from cli.parse import parse_student
from cli.setting import make_network
from dataset import DATASETS
from dataset.base import Batch
from dataset.loader import Loader, Loading
from distiller_zoo import METHODS
from distiller_zoo.base import Distiller
from engine.device import Numerics, set_determinism
from engine.graph import make_step
from engine.meter import Meter
from engine.objective import Distillation, Mutual
from engine.recipe import Schedule
from engine.stage import main_stage
from engine.teacher import BankedTeacher, LiveTeacher, NoTeacher, rows_read
from helper.options import Resolved
from models.base import Classifier, Features
from runs import checkpoint

ROOT = Path(__file__).resolve().parent.parent
CLASSES, RATE, TEMPERATURE = 100, 0.05, 4.0
BATCHES = 100  # that are trained on again and again

Way = Callable[[int], None]  # trains on so many batches, and knows then what it measured


class Parts(NamedTuple):
    """What a command line trains, anew for each way."""

    options: Resolved
    numerics: Numerics
    student: Classifier
    peer: Classifier | None  # of methods that train two students
    teacher: Classifier | None  # for methods that have one
    kd: Distiller
    method: Distiller
    train: Loader

    def batches(self) -> itertools.cycle:
        """The first full batches of an epoch, without end."""
        full = len(self.train.labels) // self.options.batch_size
        return itertools.cycle(list(itertools.islice(self.train.batches(1), min(full, BATCHES))))


def make_parts(line: str, numerics: Numerics, images: int) -> Parts:
    torch.manual_seed(0)
    options = parse_student(shlex.split(line))
    source = DATASETS["fake"]
    data = source.load(source.Options(fake_size=images, fake_classes=CLASSES))
    strong = options.choice.views_per_image(options) > 1
    how = Loading(device=numerics.device, strong=strong)
    train = Loader(data, "train", options.batch_size, how)
    names = options.model_s, options.peer, options.model_t
    student, peer, teacher = (make_network(name, data) if name else None for name in names)
    kd, method = kd_and_method(options, method_setup(student, teacher, data.image_size, train))
    return Parts(options, numerics, student, peer, teacher, kd, method, train)


# RepDistiller's way.


def published(parts: Parts) -> Way:
    """Both networks run, all terms are computed, and the host waits for three numbers a step."""
    options, numerics, device = parts.options, parts.numerics, parts.numerics.device
    student, teacher = parts.student.to(device).train(), parts.teacher.to(device).eval()
    trained = nn.ModuleList([student, parts.method.to(device)])
    optimizer = torch.optim.SGD(trained.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    method, batches = LITERAL[options.distill](parts), parts.batches()
    sums = {"loss": 0.0, "top1": 0.0, "top5": 0.0}

    def train(steps: int) -> None:
        for batch in itertools.islice(batches, steps):
            with numerics.autocast():
                s = student.features(batch.images)
                with torch.no_grad():
                    t = teacher.features(batch.images)
            logits = s.logits.float()
            loss = options.gamma * F.cross_entropy(logits, batch.labels)
            loss = loss + options.alpha * literal_kd(logits, t.logits.float())
            loss = loss + options.beta * method(s, t, batch)
            hits = logits.topk(5).indices == batch.labels[:, None]  # (B, 5)
            sums["loss"] += loss.item()
            sums["top1"] += hits[:, 0].float().mean().item()
            sums["top5"] += hits.any(dim=1).float().mean().item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


def literal_kd(s: Tensor, t: Tensor) -> Tensor:
    """Logits (B, K), (B, K) -> scalar"""
    log_p, q = F.log_softmax(s / TEMPERATURE, dim=1), F.softmax(t / TEMPERATURE, dim=1)
    return F.kl_div(log_p, q, reduction="sum") * TEMPERATURE**2 / len(s)


def literal_crd(parts: Parts) -> Callable[[Features, Features, Batch], Tensor]:
    """The rows of all candidates are gathered; these are drawn without a look at their classes."""
    method, options = parts.method, parts.options
    banks = [memory.bank for memory in (method.memory_s, method.memory_t)]  # (N, D)

    def loss(s: Features, t: Features, batch: Batch) -> Tensor:
        z = method.embed_s(s.pooled.float()), method.embed_t(t.pooled.float())  # (B, D)
        shape = len(batch.index), 1 + options.nce_k
        index = torch.randint(len(banks[0]), shape, device=batch.index.device)
        index[:, 0] = batch.index
        value = crd.crd(*z, *banks, index, options.nce_t)
        with torch.no_grad():
            for bank, vectors in zip(banks, z, strict=True):
                rows = options.nce_m * bank[batch.index] + (1 - options.nce_m) * vectors
                bank[batch.index] = rows / rows.norm(dim=1, keepdim=True)
        return value

    return loss


LITERAL = {
    "kd": lambda parts: lambda s, t, batch: torch.zeros((), device=batch.labels.device),
    "crd": literal_crd,
    "dkd": lambda parts: (
        lambda s, t, batch: dkd.dkd(s.logits.float(), t.logits.float(), batch.labels)
    ),
    "rkd": lambda parts: lambda s, t, batch: rkd.rkd(s.pooled.float(), t.pooled.float()),
}


# Ours.


def live(parts: Parts) -> Way:
    network, numerics = parts.teacher, parts.numerics
    return ours(parts, LiveTeacher(network, numerics) if network else NoTeacher(numerics))


def banked(parts: Parts) -> Way:
    terms = [parts.kd] * bool(parts.options.alpha) + [parts.method] * bool(parts.options.beta)
    rows = rows_read(terms)
    return ours(parts, BankedTeacher(parts.teacher, parts.numerics, parts.train, rows, None, 1024))


def captured(parts: Parts) -> Way:
    return banked(parts._replace(numerics=replace(parts.numerics, cuda_graph=True)))


def ours(parts: Parts, teacher: LiveTeacher | BankedTeacher) -> Way:
    """The engine's step."""
    options = parts.options
    losses = teacher, parts.kd, parts.method, options.distill, options
    if parts.peer:
        task = Mutual((parts.student, parts.peer), RATE, *losses)
    else:
        task = Distillation(parts.student, *losses)
    task.train().begin_epoch(1, 1, 1)
    stage = main_stage(task, Schedule(RATE), options)
    step, batches = make_step(stage, task), parts.batches()

    def train(steps: int) -> None:
        meter = Meter()
        for batch in itertools.islice(batches, steps):
            meter.add(step(batch), len(batch.labels))
        meter.read()

    return train


# What is measured.


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(way: Way, steps: int, device: torch.device) -> float:
    """Of a step, of so many in a row."""
    synchronise(device)
    start = time.perf_counter()
    way(steps)
    synchronise(device)
    return 1000 * (time.perf_counter() - start) / steps


def made(way: Callable[[Parts], Way], parts: Parts) -> tuple[Way, str]:
    """A way that is warm, and what it added to the GPU's memory at its peak, in MB."""
    on_gpu = parts.numerics.device.type == "cuda"
    if on_gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    train = way(parts)
    train(3)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else None
    return train, "-" if peak is None else f"{peak:.0f}"


def compare(line: str, amp: str, options: argparse.Namespace) -> None:
    """Print a row: the ways of one objective in turns."""
    device = torch.device(options.device)
    numerics = Numerics(device, amp)
    ways = {way: made(way, make_parts(line, numerics, options.images)) for way in ways_on(device)}
    rounds = [
        [milliseconds(train, options.steps, device) for train, _ in ways.values()]
        for _ in range(options.rounds)
    ]
    times = [f"{statistics.median(column):.2f}" for column in zip(*rounds, strict=True)]
    ratios = [turn[0] / turn[-1] for turn in rounds]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    memory = " / ".join(peak for _, peak in ways.values())
    print(f"| {line.split()[1]} | {amp} | {' | '.join(times)} | {ratio} | {memory} |", flush=True)


def ways_on(device: torch.device) -> list[Callable[[Parts], Way]]:
    return [published, live, banked] + [captured] * (device.type == "cuda")


def whole_runs(options: argparse.Namespace) -> None:
    """Print how long KD takes from the command to its end, for two seeds and one bank."""
    teacher, student = options.pair.split(",")
    for amp in options.amp:
        with tempfile.TemporaryDirectory() as folder:
            source = DATASETS["fake"]
            data = source.load(source.Options(fake_size=CLASSES, fake_classes=CLASSES))
            weights = {"model": make_network(teacher, data).state_dict(), "model_name": teacher}
            checkpoint.save(Path(folder) / "teacher.pth", weights)
            for seed in (1, 2):
                start = time.perf_counter()
                script(
                    f"train_student.py --path_t {folder}/teacher.pth --any_teacher --model_s "
                    f"{student} --distill kd --dataset fake --fake_size {options.images} "
                    f"--fake_classes {CLASSES} --epochs {options.epochs} --batch_size "
                    f"{options.batch_size} --device {options.device} --amp {amp} --trial {seed} "
                    f"--teacher_bank {folder}/bank --cuda_graph --save_dir {folder}/save"
                )
                seconds = time.perf_counter() - start
                (summary,) = Path(folder).glob(f"save/student_model/*_trial_{seed}/run.json")
                last = json.loads(summary.read_text())["last"]
                print(
                    f"{options.epochs} epochs of kd, {amp}, seed {seed}: {seconds:.0f} s, "
                    f"{last['graph_replays']} replays in the last epoch"
                )


def script(line: str) -> None:
    """Run one of the scripts."""
    subprocess.run([sys.executable, *shlex.split(line)], cwd=ROOT, check=True, capture_output=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(LITERAL), choices=list(LITERAL))
    parser.add_argument("--amp", nargs="+", default=["off", "bf16"], choices=("off", "bf16"))
    parser.add_argument("--pair", default="resnet32x4,resnet8x4", help="teacher,student")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--nce_k", type=int, default=16_384, help="negatives of crd")
    parser.add_argument("--steps", type=int, default=200, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="of whole runs of kd; 0: none")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    set_determinism(False)  # the fastest kernels, as in a run
    torch.backends.cuda.matmul.allow_tf32 = False
    ways = ways_on(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    print(f"torch {torch.__version__}, {where}, {options.pair}, batch {options.batch_size}\n")
    names = [way.__name__ for way in ways]
    heads = ["method", "amp", *(f"{name}, ms" for name in names), f"published / {names[-1]}"]
    print(f"| {' | '.join(heads)} | peak of each, MB |\n|{' --- |' * (len(heads) + 1)}")
    teacher, student = options.pair.split(",")
    for method, amp in itertools.product(options.methods, options.amp):
        line = f"--distill {method} --model_t {teacher} --model_s {student} --dataset fake"
        line += f" --batch_size {options.batch_size}"
        line += f" --nce_k {options.nce_k}" if hasattr(METHODS[method].Options, "nce_k") else ""
        compare(line, amp, options)
    if options.epochs:
        whole_runs(options)


if __name__ == "__main__":
    main()
