"""What the pictures need of trained networks: each runs over the test images once, and what follows
is kept by the sha256 of its checkpoint.

N test images, K classes, C channels of the pooled vector, n images of a sample, D numbers of a map.
"""

import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.manifold import TSNE
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cli.networks import as_trained, load_frozen
from cli.parse import parse_eval
from cli.setting import TEST_BATCH, load_data, make_loader
from dataset.fingerprint import fingerprint
from dataset.layout import notes_once
from dataset.loader import Loading
from dataset.subset import AnySet, part_of
from engine.device import Numerics
from helper.errors import UserError
from helper.files import read_regular, write_whole
from models.base import Classifier
from runs import checkpoint
from runs.experiment import plain
from runs.results import Result

VERSION = "2"  # of what is kept: to be raised with any change of a number below
BINS = 15  # of the calibration error
SHOWN_CLASSES, SHOWN_IMAGES = 10, 60  # of t-SNE: classes, images of each
COMPARED = 256  # images whose maps are compared
WORST, THUMBNAIL = 8, 96  # images of the highest loss, and pixels a side at most
TIMED = (1, 32)  # images of a batch whose latency is measured
WARM_UP, PASSES = 2, 7  # of a network whose latency is measured

Arrays = dict[str, np.ndarray]


class Outputs(NamedTuple):
    """What a network says of the test images."""

    logits: Tensor  # (N, K)
    labels: Tensor  # (N,)
    index: Tensor  # (N,) number of each in the test split
    pooled: Tensor  # (n, C) of the images of t-SNE
    shown: Tensor  # (n,) their labels
    maps: dict[str, Tensor]  # (n, D) of the images that are compared, by the stage's name
    flops: int  # of one image, 2 for a multiplication with its addition


class Data:
    """The test images of checkpoints, loaded once for all that have the same."""

    def __init__(self, numerics: Numerics, more: tuple[str, ...] = ()):
        """`more` are words of a command line: where the images lie now."""
        self.numerics, self.more = numerics, more
        self._sets: dict[tuple, tuple[AnySet, str]] = {}
        self._said: set[str] = set()

    def of(self, path: Path) -> tuple[AnySet, str]:
        """The data of a checkpoint, normalised as in its training, and its fingerprint."""
        options = parse_eval(["-c", str(path), *self.more])
        known = tuple(sorted((k, str(v)) for k, v in options.values.items() if k != "ckpt"))
        if known not in self._sets:
            with notes_once(self._said):
                data = load_data(options)
            self._sets[known] = data, fingerprint(data)
        data, name = self._sets[known]
        return as_trained(data, str(path)), name


@dataclass
class Network:
    """A checkpoint, which is run when somebody asks for what is not kept."""

    path: Path
    data: Data

    @cached_property
    def sha256(self) -> str:
        return checkpoint.digest(self.path)

    @cached_property
    def images(self) -> tuple[AnySet, str]:
        return self.data.of(self.path)

    @cached_property
    def name(self) -> str:
        return checkpoint.network_of(self.path, "--model")

    def load(self) -> Classifier:
        """On the CPU."""
        return load_frozen(self.name, self.path, self.images[0])

    @cached_property
    def outputs(self) -> Outputs:
        data, _ = self.images
        return run_network(self.load(), data, self.data.numerics)


@dataclass(frozen=True)
class Cache:
    """Arrays on disk, by the checkpoints that they follow from."""

    folder: Path
    latencies: dict[tuple[str, str], Arrays] = field(default_factory=dict)  # by network and data

    def get(self, what: str, networks: list[Network], compute: Callable[[], Arrays]) -> Arrays:
        """What is kept, else what `compute` gives."""
        key = "-".join([*(n.sha256[:20] for n in networks), networks[0].images[1][:12]])
        path = self.folder / f"{what}-{key}-{VERSION}.npz"
        try:
            read_regular(path)
            with np.load(path, allow_pickle=False) as kept:
                return dict(kept)
        except Exception:  # whatever broken bytes lead to: it is computed again
            arrays = compute()
            write_whole(path, lambda file: np.savez_compressed(file, **arrays))
            return arrays

    def latency(self, network: Network) -> Arrays:
        """That of the first network of its name, since weights do not change it."""
        key = network.name, network.images[1]
        if key not in self.latencies:
            what = f"latency{torch.get_num_threads()}-{machine()}"
            self.latencies[key] = self.get(what, [network], lambda: latency(network))
        return self.latencies[key]


def machine() -> str:
    """Digest of what a latency depends on beside the network."""
    facts = platform.node(), platform.processor(), os.cpu_count(), torch.__version__
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


# ---- running


@torch.no_grad()
def run_network(network: Classifier, data: AnySet, numerics: Numerics) -> Outputs:
    """All of the test images through a network in eval."""
    network = numerics.place(network, "student")
    loader = make_loader(
        data, "test", TEST_BATCH[numerics.device.type], Loading(0, numerics.device)
    )
    every = torch.as_tensor(data.test.labels).cpu()
    shown, compared = shown_images(every), compared_images(len(every))
    logits, labels, order, pooled, maps = [], [], [], [], []
    for batch in loader.batches(0):
        with numerics.autocast():
            images = numerics.images(network.own_pixels(batch.images), "student")
            features = network.features(images)
        logits.append(features.logits.float().cpu())
        labels.append(batch.labels.cpu())
        index = batch.index.cpu()
        order.append(index)
        pooled.append(features.pooled.float().cpu()[torch.isin(index, shown)])
        maps.append([x.float().cpu()[torch.isin(index, compared)].flatten(1)
                     for x in (*features.stages, features.pooled)])  # fmt: skip
    names = [f"stage {i + 1}" for i in range(len(maps[0]) - 1)] + ["pooled"]
    stages = dict(zip(names, map(torch.cat, zip(*maps, strict=True)), strict=True))
    return Outputs(
        *map(torch.cat, (logits, labels, order, pooled)), every[shown], stages,
        count_flops(network, images[:1]),
    )  # fmt: skip


def shown_images(labels: Tensor) -> Tensor:
    """Test images of t-SNE, sorted (n,): the first of each of some classes, evenly chosen."""
    classes = labels.unique()
    places = torch.linspace(0, len(classes) - 1, min(SHOWN_CLASSES, len(classes))).round().long()
    chosen = [(labels == one).nonzero().flatten()[:SHOWN_IMAGES] for one in classes[places]]
    return torch.cat(chosen).sort().values


def compared_images(n: int) -> Tensor:
    """Test images whose maps are compared, sorted: the same random ones for every network."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[:COMPARED].sort().values


def count_flops(network: Classifier, image: Tensor) -> int:
    """Of one forward pass of an image (1, 3, H, W)."""
    with FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


# ---- numbers


def looks_of(network: Network) -> Arrays:
    """Accuracy in %, images of each class by what they are taken for (K, K), bins (3, BINS) of
    confidence, correlation of the classes' logits (K, K), FLOPs."""
    out = network.outputs
    classes = out.logits.shape[1]
    predicted = out.logits.argmax(dim=1)
    confusion = (out.labels * classes + predicted).bincount(minlength=classes**2)
    logits = out.logits.double()
    constant = logits.std(dim=0) == 0  # a logit that never changes goes with no other: 0, not 0 / 0
    correlation = torch.corrcoef(logits.T).masked_fill(constant | constant[:, None], 0)
    return {
        "accuracy": (100 * (predicted == out.labels).double().mean()).numpy(),
        "confusion": confusion.reshape(classes, classes).int().numpy(),
        "bins": confidence_bins(out.logits, out.labels).numpy(),
        "correlation": correlation.float().numpy(),
        "flops": np.array(out.flops),
    }


def confidence_bins(logits: Tensor, labels: Tensor) -> Tensor:
    """Images, sum of confidences and hits of each of 15 bins of equal width: (3, BINS).

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # (a, b] as published
    rows = (torch.ones_like(confidence), confidence, (predicted == labels).double())
    return torch.stack([places.bincount(row, BINS) for row in rows])


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error in % of bins (3, BINS)."""
    images, confidence, hits = bins
    return float(100 * np.abs(confidence - hits).sum() / images.sum())


def confusion_shares(confusion: np.ndarray) -> np.ndarray:
    """Images (K, K) -> % of each class's; 0 of a class without any."""
    return 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def fidelity(student: Network, teacher: Network) -> Arrays:
    """Test images in % of which both predict the same class, and mean KL(teacher || student).

    Stanton et al., Does Knowledge Distillation Really Work?, NeurIPS 2021 (eq. 3, 4).
    """
    ours, theirs = (n.outputs.logits.double() for n in (student, teacher))
    same = ours.argmax(dim=1) == theirs.argmax(dim=1)
    log_q, log_p = ours.log_softmax(dim=1), theirs.log_softmax(dim=1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    return {"agreement": (100 * same.double().mean()).numpy(), "kl": kl.numpy()}


def embedding(network: Network) -> Arrays:
    """t-SNE of pooled vectors: points (n, 2) and their labels (n,)."""
    out = network.outputs
    perplexity = min(30.0, (len(out.shown) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return {"points": tsne.fit_transform(out.pooled.numpy()), "labels": out.shown.numpy()}


def similarity(student: Network, teacher: Network) -> Arrays:
    """Linear CKA of each of the student's stages with each of the teacher's: (S, T), with names."""
    ours, theirs = ({k: centred_gram(x) for k, x in n.outputs.maps.items()}
                    for n in (student, teacher))  # fmt: skip
    values = [[cka(a, b) for b in theirs.values()] for a in ours.values()]
    return {
        "cka": np.array(values),
        "student": np.array(list(ours)),
        "teacher": np.array(list(theirs)),
    }


def centred_gram(x: Tensor) -> Tensor:
    """Features (n, D) -> their Gram matrix (n, n), U-centred: an unbiased HSIC is then a product.

    Szekely and Rizzo, Partial distance correlation, 2014 (eq. 1.4).
    """
    gram = (x @ x.T).double().fill_diagonal_(0)
    n = len(gram)
    means = gram.sum(dim=0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    return (gram - means[:, None] - means[None, :]).fill_diagonal_(0)


def cka(a: Tensor, b: Tensor) -> float:
    """Debiased linear CKA of two U-centred Gram matrices (n, n).

    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019;
    debiased as in Nguyen et al., Do Wide and Deep Networks Learn the Same Things?, ICLR 2021.
    """
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def worst(student: Network, teacher: Network | None) -> Arrays:
    """The test images of the student's highest loss, from the worst on: pixels (n, H, W, 3) uint8,
    labels (n,), and answers (n, 1 or 2) of the student and the teacher with their probabilities."""
    out, (data, _) = student.outputs, student.images
    loss = F.cross_entropy(out.logits.double(), out.labels, reduction="none")
    chosen = loss.topk(min(WORST, len(loss))).indices
    every = [network.outputs.logits[chosen].double() for network in (student, teacher) if network]
    shares = torch.stack([logits.softmax(dim=1) for logits in every], dim=1)  # (n, 2, K)
    likely = shares.max(dim=2)
    return {
        "pixels": thumbnails(data, out.index[chosen]).numpy(),
        "labels": out.labels[chosen].numpy(),
        "answers": likely.indices.numpy(),
        "shares": likely.values.numpy(),
    }


def thumbnails(data: AnySet, index: Tensor) -> Tensor:
    """Test images as networks see them, but not normalised and small: (n, H, W, 3) uint8."""
    some = replace(data, test=part_of(data.test, index))
    images = torch.cat([b.images for b in make_loader(some, "test", WORST, Loading(0)).batches(0)])
    mean, std = (torch.tensor(x)[:, None, None] for x in (data.mean, data.std))
    pixels = images * std + mean
    if pixels.shape[-1] > THUMBNAIL:
        pixels = F.interpolate(pixels, (THUMBNAIL,) * 2, mode="bilinear", antialias=True)
    return (255 * pixels).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@torch.inference_mode()
def latency(network: Network) -> Arrays:
    """Milliseconds of a forward pass on the CPU, float32, of each of the TIMED batches."""
    classifier, size = network.load(), network.images[0].image_size
    batches = (torch.zeros(n, 3, size, size) for n in TIMED)
    return {"milliseconds": np.array([time_passes(classifier, images) for images in batches])}


def time_passes(network: Classifier, images: Tensor) -> float:
    """Median milliseconds of some passes, after others that warm up."""
    times = []
    for _ in range(WARM_UP + PASSES):
        started = time.perf_counter()
        network(images)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[WARM_UP:])


# ---- of all runs


@dataclass
class Looks:
    """Of one run: what its networks show; empty where that could not be found out."""

    alone: Arrays
    with_teacher: Arrays = field(default_factory=dict)
    points: Arrays = field(default_factory=dict)
    stages: Arrays = field(default_factory=dict)
    worst: Arrays = field(default_factory=dict)
    latency: Arrays = field(default_factory=dict)


Measured = dict[tuple[str, Any], list[Looks]]  # of the runs of each cell, by its row and column


def measure(network: Network, teacher: Network | None, cache: Cache, pictures: bool) -> Looks:
    """Everything of a checkpoint; what shows one trial of several for `pictures` alone."""
    both = [network, *([teacher] if teacher else [])]
    looks = Looks(cache.get("looks", [network], lambda: looks_of(network)))
    if teacher:
        looks.with_teacher = cache.get("fidelity", both, lambda: fidelity(*both))
    if pictures:
        looks.points = cache.get("tsne", [network], lambda: embedding(network))
        looks.worst = cache.get("worst", both, lambda: worst(network, teacher))
        looks.latency = cache.latency(network)
    if pictures and teacher:
        looks.stages = cache.get("cka", both, lambda: similarity(*both))
    return looks


def last_checkpoint(run: Result) -> Path:
    """The weights of a run's last epoch; UserError where there are none."""
    last = run.folder / f"{plain(run.model)}_last.pth"
    if last.exists():
        return last
    found = sorted(
        run.folder.glob("ckpt_epoch_*.pth"), key=lambda path: int(path.stem.split("_")[-1])
    )
    if not found:
        raise UserError(f"{run.folder} holds no weights")
    return found[-1]
