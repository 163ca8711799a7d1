"""Time and memory of a loss, forward and backward, against the paper's formula computed literally.

python benchmarks/losses.py [--methods nst crd] [--rounds 5] [--pair TEACHER,STUDENT] [--device D]

Batch 64, float32, the shapes of a pair of networks, random features. Ours and the literal form take
turns in one process: median milliseconds, the ratio literal / ours as median (minimum-maximum).
Memory is what each adds to its own process at its peak.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import literal as forms
from crd.memory import Negatives
from dataset.base import Batch
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Setup
from models import MODELS

BATCH, SAMPLES, CLASSES, NEGATIVES = 64, 50_000, 100, 16_384


class Scene:
    """Features of a pair of networks for one batch, every tensor of the student a leaf."""

    def __init__(self, teacher: str, student: str, device: str):
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.labels = (torch.arange(SAMPLES) % CLASSES).to(device)
        index = torch.randperm(SAMPLES)[:BATCH].to(device)
        self.batch = Batch(None, self.labels[index], index)
        self.negatives = Negatives(self.labels, NEGATIVES)
        nets = [MODELS[name](CLASSES).eval().to(device) for name in (student, teacher)]
        images = torch.randn(BATCH, 3, 32, 32, device=device)
        with torch.no_grad():
            self.student, self.teacher = (net.features(images) for net in nets)
            strong = [net.features(images.flip(3)) for net in nets]
        self.setup = Setup(self.student, self.teacher, *nets, self.labels)
        s = self.student
        for tensor in (s.stem, *s.stages, *s.preacts, s.last_map, s.pooled, s.logits):
            tensor.requires_grad_()
        strong[0].logits.requires_grad_()
        self.student = s.replace(strong=strong[0])
        self.teacher = self.teacher.replace(strong=strong[1])

    def method(self, name: str, **options):
        return METHODS[name](METHODS[name].Options(**options), self.setup).to(self.device)


# Ours: forward and backward of a method. Literal: the same value by the formula as it is written.
Step = Callable[[], Tensor]


def ours(name: str, **options) -> Callable[["Scene"], Step]:
    """The method, in its first stage where that is all it has."""

    def of(scene):
        method = scene.method(name, **options)
        loss = method.first_stage_loss if METHODS[name].only_first_stage else method
        return lambda: loss(scene.student, scene.teacher, scene.batch)

    return of


def literal(read, function) -> Callable[["Scene"], Step]:
    """A form that is a function of what `read` takes from the features of either network."""
    return lambda scene: lambda: function(read(scene.student), read(scene.teacher))


def pooled(features):
    return features.pooled


def logits(features):
    return features.logits


def stages(features):
    return features.stages


def preacts(features):
    return features.preacts


def stem_and_stages(features):
    return [features.stem, *features.stages]


def last_map(features):
    return features.last_map


def last_stage(features):
    return features.stages[-1:]


def on_labels(function) -> Callable[["Scene"], Step]:
    """A form that is a function of both logits and the labels."""
    return lambda scene: (
        lambda: function(scene.student.logits, scene.teacher.logits, scene.batch.labels)
    )


def of_vid(scene):
    parts = scene.method("vid").likelihoods
    regressors, scales = [p.regressor for p in parts], [p.log_scale for p in parts]
    return lambda: forms.vid.vid(regressors, scales, scene.student.stages, scene.teacher.stages)


def of_tfkd(scene):
    return lambda: forms.tfkd.tfkd(scene.student.logits, scene.batch.labels)


def of_pskd(scene):
    past = scene.method("pskd").past

    def step():
        return forms.pskd.pskd(
            scene.student.logits, scene.batch.labels, scene.batch.index, past, 0.0
        )

    return step


def of_two_views(function) -> Callable[["Scene"], Step]:
    """A form that is a function of both networks' logits on both views."""

    def of(scene):
        views = [x.logits for x in (scene.student, scene.teacher)]
        views += [x.strong.logits for x in (scene.student, scene.teacher)]
        return lambda: function(*views)

    return of


def of_hint(scene):
    method = scene.method("hint")
    s, t = method.layer(scene.student, "student"), method.layer(scene.teacher, "teacher")
    return lambda: forms.hint.hint(method.regressor(s), t)


def of_correlation(scene):
    method, s, t = scene.method("correlation"), scene.student.pooled, scene.teacher.pooled
    return lambda: forms.correlation.correlation(method.embed_s(s), method.embed_t(t))


def of_factor(scene):
    method, s, t = scene.method("factor"), scene.student.stages[-1], scene.teacher.stages[-1]

    def step():
        with torch.no_grad():
            factor_t = method.paraphraser.encoder(t)
        return forms.factor.factor(method.translator(s), factor_t)

    return step


def of_ofd(scene):
    method = scene.method("ofd")
    margins = [forms.ofd.margin(n.weight, n.bias) for n in scene.setup.teacher_net.preact_norms()]

    def step():
        connected = [c(s) for c, s in zip(method.connectors, scene.student.preacts, strict=True)]
        return forms.ofd.ofd(connected, scene.teacher.preacts, margins)

    return step


def of_reviewkd(scene):
    method = scene.method("reviewkd")
    s, t = method.levels_of_student(scene.student), method.levels_of_teacher(scene.teacher)
    return lambda: forms.reviewkd.reviewkd(method.fusions, s, t)


def of_icd(scene):
    method, o = scene.method("icd"), scene.method("icd").options

    def step():
        z_s, z_t = method.embed_s(scene.student.pooled), method.embed_t(scene.teacher.pooled)
        return forms.icd.icd(z_s, z_t, method.tau.exp(), method.b, o.consistency)

    return step


def of_crd(scene):
    method = scene.method("crd")
    banks = method.memory_s.bank, method.memory_t.bank

    def step():
        z_s, z_t = method.embed_s(scene.student.pooled), method.embed_t(scene.teacher.pooled)
        index = method.candidates(scene.batch)
        return forms.crd.crd(z_s, z_t, *banks, index, method.options.nce_t)

    return step


def of_crd_queue(scene):
    method = scene.method("crd", crd_memory="queue")

    def step():
        z_s, z_t = method.embed_s(scene.student.pooled), method.embed_t(scene.teacher.pooled)
        return forms.crd.queue(z_s, z_t, method.queue.bank, method.options.nce_t)

    return step


def of_rrd_queue(scene):
    method, o = scene.method("rrd"), scene.method("rrd").options

    def step():
        z_s, z_t = method.embed_s(scene.student.pooled), method.embed_t(scene.teacher.pooled)
        return forms.rrd.queue(z_s, z_t, method.queue.bank, o.nce_t_s, o.nce_t_t)

    return step


def of_rrd_momentum(scene):
    method = scene.method("rrd", rrd_memory="momentum")
    banks, o = (method.memory_s.bank, method.memory_t.bank), method.options

    def step():
        z_s, z_t = method.embed_s(scene.student.pooled), method.embed_t(scene.teacher.pooled)
        index = method.candidates(scene.batch)
        return forms.rrd.momentum(z_s, z_t, *banks, index, o.nce_t, o.nce_t_s, o.nce_t_t)

    return step


def of_wkd_logit(scene):
    cost, o = scene.method("wkd_logit").cost, METHODS["wkd_logit"].Options()
    inputs = scene.student.logits, scene.teacher.logits, scene.batch.labels
    return lambda: forms.wkd.logit(*inputs, cost, o.wkd_T, o.wkd_transport)


def of_wkd_feature(scene):
    method, o = scene.method("wkd_feature", wkd_grid=4), METHODS["wkd_feature"].Options()
    s, t = scene.student.last_map, scene.teacher.last_map
    return lambda: forms.wkd.feature(method.projector(s), t, 4, o.wkd_mean)


def of_wkd(scene):
    logit, feature = of_wkd_logit(scene), of_wkd_feature(scene)
    return lambda: logit() + METHODS["wkd"].Options().wkd_feature_weight * feature()


def of_srd(scene):
    method, s, t = scene.method("srd"), scene.student, scene.teacher
    return lambda: forms.srd.srd(method.embed_s(s.pooled), t.pooled, s.logits, t.logits)


def of_catkd(scene):
    maps, heads = zip(*((x.last_map, x.head.weight) for x in (scene.student, scene.teacher)))
    return lambda: forms.catkd.catkd(*maps, *heads)


def kd_on_regions(scene):
    """KD over the 21 regions of the scales 1, 2 and 4."""
    view = VIEWS["sdd"](VIEWS["sdd"].Options(sdd=(1, 2, 4)), scene.setup)
    method = METHODS["kd"](METHODS["kd"].Options(), replace(scene.setup, views=(view,)))
    return lambda: method(scene.student, scene.teacher, scene.batch)


def of_regions(scene):
    s, t = scene.student, scene.teacher
    return lambda: forms.sdd.kd(s, t, scene.batch.labels, (1, 2, 4), 4.0)


def draw(scene):
    """Negatives of a batch; there is no gradient."""
    return lambda: scene.negatives(scene.batch.labels, scene.batch.index)


def draw_literally(scene):
    others, of = forms.crd.other_samples(scene.labels.cpu().numpy()), scene.batch.labels

    def step():
        drawn = forms.crd.negatives(others, of.cpu().numpy(), scene.negatives.k)
        return torch.from_numpy(drawn).to(of.device)

    return step


ROWS: dict[str, tuple[Callable[["Scene"], Step], Callable[["Scene"], Step]]] = {
    "nst": (ours("nst"), literal(stages, forms.nst.nst)),
    "fsp": (ours("fsp"), literal(stem_and_stages, forms.fsp.fsp)),
    "crd": (ours("crd"), of_crd),
    "rrd, momentum": (ours("rrd", rrd_memory="momentum"), of_rrd_momentum),
    "drawing negatives": (draw, draw_literally),
    "kdsvd": (ours("kdsvd"), literal(stages, forms.kdsvd.kdsvd)),
    "rkd": (ours("rkd"), literal(pooled, forms.rkd.rkd)),
    "abound": (ours("abound"), literal(preacts, forms.abound.abound)),
    "vid": (ours("vid"), of_vid),
    "factor": (ours("factor"), of_factor),
    "hint": (ours("hint"), of_hint),
    "attention": (ours("attention"), literal(stages, forms.attention.attention)),
    "similarity": (ours("similarity"), literal(last_stage, forms.similarity.similarity)),
    "correlation": (ours("correlation"), of_correlation),
    "pkt": (ours("pkt"), literal(pooled, forms.pkt.pkt)),
    "icd": (ours("icd"), of_icd),
    "crd, queue": (ours("crd", crd_memory="queue"), of_crd_queue),
    "rrd, queue": (ours("rrd"), of_rrd_queue),
    "ofd": (ours("ofd"), of_ofd),
    "reviewkd": (ours("reviewkd"), of_reviewkd),
    "dkd": (ours("dkd"), on_labels(forms.dkd.dkd)),
    "rld": (ours("rld"), on_labels(forms.rld.rld)),
    "nkd": (ours("nkd"), on_labels(forms.nkd.nkd)),
    "kd, ab": (
        ours("kd", divergence="ab", ab_alpha=0.8, ab_beta=0.3),
        on_labels(forms.abkd.abkd),
    ),
    "dist": (ours("dist"), on_labels(forms.dist.dist)),
    "ttm": (ours("ttm"), on_labels(forms.ttm.ttm)),
    "wttm": (ours("wttm"), on_labels(forms.ttm.wttm)),
    "normkd": (ours("normkd"), on_labels(forms.normkd.normkd)),
    "ldrld": (ours("ldrld"), on_labels(forms.ldrld.ldrld)),
    "mlkd, two views": (ours("mlkd", mlkd_strong=True), of_two_views(forms.mlkd.mlkd)),
    "crld": (ours("crld"), of_two_views(forms.crld.crld)),
    "tfkd": (ours("tfkd"), of_tfkd),
    "pskd": (ours("pskd"), of_pskd),
    "dml": (ours("dml"), literal(logits, forms.dml.dml)),
    "simkd": (ours("simkd"), literal(last_map, forms.hint.hint)),
    "wkd_logit": (ours("wkd_logit"), of_wkd_logit),
    "wkd": (ours("wkd", wkd_grid=4, wkd_T=6.0, wkd_mean=4.0), of_wkd),
    "wkd_feature, grid 4": (ours("wkd_feature", wkd_grid=4), of_wkd_feature),
    "skd": (ours("skd"), on_labels(forms.skd.skd)),
    "srd": (ours("srd"), of_srd),
    "catkd": (ours("catkd"), of_catkd),
    "kd, sdd 1,2,4": (kd_on_regions, of_regions),
}


def steps(name: str, scene: Scene) -> dict[str, Callable[[], None]]:
    """Ours and the literal form: each call is a forward and a backward pass."""

    def both(forward):
        def step():
            loss = forward()
            if name != "drawing negatives":
                loss.backward()

        return step

    return dict(zip(("ours", "literal"), (both(row(scene)) for row in ROWS[name]), strict=True))


def milliseconds(step) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def megabytes(name: str, which: str, options) -> float:
    """What a step adds to the peak memory of a process of its own."""
    command = [sys.executable, __file__, "--pair", options.pair, "--device", options.device]
    command += ["--memory-of", name, which]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_memory(name: str, which: str, scene: Scene) -> None:
    step = steps(name, scene)[which]
    if scene.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
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
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pair", default="resnet32x4,resnet8x4", help="teacher,student")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    scene = Scene(*options.pair.split(","), options.device)
    if options.memory_of:
        print_memory(*options.memory_of, scene)
        return
    where = f"{torch.get_num_threads()} threads"
    if scene.device.type == "cuda":
        where = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {where}, {options.pair}\n")
    print("| method | literal, ms | ours, ms | literal / ours | literal, MB | ours, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.methods:
        step = steps(name, scene)
        for each in step.values():  # not timed: kernels are chosen, memory is taken
            each()
        pairs = [
            (milliseconds(step["literal"]), milliseconds(step["ours"]))
            for _ in range(options.rounds)
        ]
        slow, quick = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [a / b for a, b in pairs]
        memory = [megabytes(name, which, options) for which in ("literal", "ours")]
        print(
            f"| {name} | {slow:.1f} | {quick:.1f} | {statistics.median(ratios):.1f} "
            f"({min(ratios):.1f}-{max(ratios):.1f}) | {memory[0]:.0f} | {memory[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
