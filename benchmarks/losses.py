"""Cost of a loss, forward and backward, against the paper's formula computed literally.

python benchmarks/losses.py [--methods nst crd] [--rounds 5] [--pair resnet32x4,resnet8x4]

Batch 64, float32, the shapes of a pair of networks, random features. Ours and the literal form take
turns in one process: median milliseconds, the ratio literal / ours as median (minimum-maximum).
Memory is what each adds to its own process at its peak.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.literal import crd as literal_crd
from benchmarks.literal import dkd as literal_dkd
from benchmarks.literal import nst as literal_nst
from benchmarks.literal import rkd as literal_rkd
from benchmarks.literal import vid as literal_vid
from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import Setup
from models import MODELS

BATCH, SAMPLES, CLASSES = 64, 50_000, 100


class Scene:
    """What student and teacher of a pair show of a batch, every tensor a leaf."""

    def __init__(self, teacher: str, student: str):
        torch.manual_seed(0)
        self.labels = torch.arange(SAMPLES) % CLASSES
        index = torch.randperm(SAMPLES)[:BATCH]
        self.batch = Batch(None, self.labels[index], index)
        nets = [MODELS[name](CLASSES).eval() for name in (student, teacher)]
        images = torch.randn(BATCH, 3, 32, 32)
        with torch.no_grad():
            self.student, self.teacher = (net.features(images) for net in nets)
        self.setup = Setup(self.student, self.teacher, *nets, self.labels)
        s = self.student
        for tensor in (s.stem, *s.stages, *s.preacts, s.last_map, s.pooled, s.logits):
            tensor.requires_grad_()

    def method(self, name: str):
        return METHODS[name](METHODS[name].Options(), self.setup)


def nst(scene):
    f_s, f_t = scene.student.stages, scene.teacher.stages
    return lambda: literal_nst.nst(f_s, f_t)


def rkd(scene):
    f_s, f_t = scene.student.pooled, scene.teacher.pooled
    return lambda: literal_rkd.rkd(f_s, f_t)


def vid(scene):
    parts = scene.method("vid").likelihoods
    regressors, scales = [p.regressor for p in parts], [p.log_scale for p in parts]
    f_s, f_t = scene.student.stages, scene.teacher.stages
    return lambda: literal_vid.vid(regressors, scales, f_s, f_t)


def dkd(scene):
    s, t = scene.student.logits, scene.teacher.logits
    return lambda: literal_dkd.dkd(s, t, scene.batch.labels)


def crd(scene):
    method = scene.method("crd")
    banks = method.memory_s.bank, method.memory_t.bank

    def step():
        z_s, z_t = method.embed_s(scene.student.pooled), method.embed_t(scene.teacher.pooled)
        index = method.candidates(scene.batch)
        return literal_crd.crd(z_s, z_t, *banks, index, method.options.nce_t)

    return step


LITERAL = {"nst": nst, "crd": crd, "rkd": rkd, "vid": vid, "dkd": dkd}


def steps(name: str, scene: Scene):
    """Ours and the literal form: each call is a forward and a backward pass."""
    method, literal = scene.method(name), LITERAL[name](scene)

    def ours():
        method(scene.student, scene.teacher, scene.batch).backward()

    return {"ours": ours, "literal": lambda: literal().backward()}


def milliseconds(step) -> float:
    start = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - start)


def megabytes(name: str, which: str, pair: str) -> float:
    """What a step adds to the peak memory of a process of its own."""
    command = [sys.executable, __file__, "--pair", pair, "--memory-of", name, which]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_memory(name: str, which: str, scene: Scene) -> None:
    step = steps(name, scene)[which]
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
    before = peak()
    step()
    print(peak() - before)


def peak() -> float:
    """Peak memory of this process in MB, since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(LITERAL), choices=list(LITERAL))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pair", default="resnet32x4,resnet8x4", help="teacher,student")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    scene = Scene(*options.pair.split(","))
    if options.memory_of:
        print_memory(*options.memory_of, scene)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.pair}\n")
    print("| method | literal, ms | ours, ms | literal / ours | literal, MB | ours, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.methods:
        step = steps(name, scene)
        step["ours"]()
        pairs = [
            (milliseconds(step["literal"]), milliseconds(step["ours"]))
            for _ in range(options.rounds)
        ]
        literal, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [a / b for a, b in pairs]
        memory = [megabytes(name, which, options.pair) for which in ("literal", "ours")]
        print(
            f"| {name} | {literal:.1f} | {ours:.1f} | {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f}-{max(ratios):.1f}) | {memory[0]:.0f} | {memory[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
