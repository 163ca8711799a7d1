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

from benchmarks.literal import (
    abound,
    attention,
    crd,
    dkd,
    fsp,
    kdsvd,
    nst,
    pkt,
    rkd,
    similarity,
    vid,
)
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


def of(read, function):
    """A literal form that is a function of what `read` takes from either network."""
    return lambda scene: lambda: function(read(scene.student), read(scene.teacher))


def pooled(shown):
    return shown.pooled


def stages(shown):
    return shown.stages


def preacts(shown):
    return shown.preacts


def stem_and_stages(shown):
    return [shown.stem, *shown.stages]


def last_stage(shown):
    return shown.stages[-1:]


def of_vid(scene):
    parts = scene.method("vid").likelihoods
    regressors, scales = [p.regressor for p in parts], [p.log_scale for p in parts]
    return lambda: vid.vid(regressors, scales, scene.student.stages, scene.teacher.stages)


def of_dkd(scene):
    s, t = scene.student.logits, scene.teacher.logits
    return lambda: dkd.dkd(s, t, scene.batch.labels)


def of_crd(scene):
    method = scene.method("crd")
    banks = method.memory_s.bank, method.memory_t.bank

    def step():
        z_s, z_t = method.embed_s(scene.student.pooled), method.embed_t(scene.teacher.pooled)
        return crd.crd(z_s, z_t, *banks, method.candidates(scene.batch), method.options.nce_t)

    return step


LITERAL = {
    "nst": of(stages, nst.nst),
    "fsp": of(stem_and_stages, fsp.fsp),
    "crd": of_crd,
    "kdsvd": of(stages, kdsvd.kdsvd),
    "rkd": of(pooled, rkd.rkd),
    "abound": of(preacts, abound.abound),
    "vid": of_vid,
    "attention": of(stages, attention.attention),
    "similarity": of(last_stage, similarity.similarity),
    "pkt": of(pooled, pkt.pkt),
    "dkd": of_dkd,
}
FIRST_STAGE_ONLY = {"fsp", "abound"}


def steps(name: str, scene: Scene):
    """Ours and the literal form: each call is a forward and a backward pass."""
    method, literal = scene.method(name), LITERAL[name](scene)

    loss = method.first_stage_loss if name in FIRST_STAGE_ONLY else method

    def ours():
        loss(scene.student, scene.teacher, scene.batch).backward()

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
