"""What the pictures need of trained networks: each runs over the test images once, and what follows
is kept by the sha256 of its checkpoint.

N test images, K classes, C channels of the pooled vector, n images of a sample, D numbers of a map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cli.networks import as_trained, load_frozen
from cli.parse import parse_eval
from cli.setting import TEST_BATCH, load_data, make_loader
from dataset.fingerprint import fingerprint
from dataset.loader import Loading
from dataset.subset import AnySet
from engine.device import Numerics
from engine.evaluate import count_by_class
from helper.errors import UserError
from helper.files import read_regular, write_whole
from models.base import Classifier
from runs import checkpoint
from runs.experiment import plain
from runs.results import Result

VERSION = "1"  # of what is kept: to be raised with any change of a number below
BINS = 15  # of the calibration error
SHOWN_CLASSES, SHOWN_IMAGES = 10, 60  # of t-SNE: classes, images of each
COMPARED = 256  # images whose maps are compared

Arrays = dict[str, np.ndarray]


class Outputs(NamedTuple):
    """What a network says of the test images."""

    logits: Tensor  # (N, K)
    labels: Tensor  # (N,)
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

    def of(self, path: Path) -> tuple[AnySet, str]:
        """The data of a checkpoint, normalised as in its training, and its fingerprint."""
        options = parse_eval(["-c", str(path), *self.more])
        known = tuple(sorted((k, str(v)) for k, v in options.values.items() if k != "ckpt"))
        if known not in self._sets:
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
    def outputs(self) -> Outputs:
        data, _ = self.images
        name = checkpoint.network_of(self.path, "--model")
        network = load_frozen(name, self.path, data)
        return run_network(network, data, self.data.numerics)


@dataclass(frozen=True)
class Cache:
    """Arrays on disk, by the checkpoints that they follow from."""

    folder: Path

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
    logits, labels, pooled, maps = [], [], [], []
    for batch in loader.batches(0):
        with numerics.autocast():
            images = numerics.images(network.own_pixels(batch.images), "student")
            features = network.features(images)
        logits.append(features.logits.float().cpu())
        labels.append(batch.labels.cpu())
        index = batch.index.cpu()
        pooled.append(features.pooled.float().cpu()[torch.isin(index, shown)])
        maps.append([x.float().cpu()[torch.isin(index, compared)].flatten(1)
                     for x in (*features.stages, features.pooled)])  # fmt: skip
    names = [f"stage {i + 1}" for i in range(len(maps[0]) - 1)] + ["pooled"]
    stages = dict(zip(names, map(torch.cat, zip(*maps, strict=True)), strict=True))
    return Outputs(
        torch.cat(logits), torch.cat(labels), torch.cat(pooled), every[shown], stages,
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
    """Accuracy in %, hits and images (K,) of each class, confidence bins (3, BINS), correlation of
    the classes' logits (K, K), FLOPs."""
    out = network.outputs
    classes = out.logits.shape[1]
    predicted = out.logits.argmax(dim=1)
    hits, images = count_by_class(predicted, out.labels, classes)
    logits = out.logits.double()
    constant = logits.std(dim=0) == 0  # a logit that never changes goes with no other: 0, not 0 / 0
    correlation = torch.corrcoef(logits.T).masked_fill(constant | constant[:, None], 0)
    return {
        "accuracy": (100 * (predicted == out.labels).double().mean()).numpy(),
        "hits": hits.numpy(),
        "images": images.numpy(),
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


# ---- of all runs


@dataclass
class Looks:
    """Of one run: what its networks show; empty where that could not be found out."""

    alone: Arrays
    with_teacher: Arrays
    points: Arrays
    stages: Arrays


Measured = dict[tuple[str, Any], list[Looks]]  # of the runs of each cell, by its row and column


def measure(network: Network, teacher: Network | None, cache: Cache, pictures: bool) -> Looks:
    """Everything of a checkpoint; t-SNE and CKA for `pictures` alone."""
    both = [network, *([teacher] if teacher else [])]
    alone = cache.get("looks", [network], lambda: looks_of(network))
    with_teacher, points, stages = {}, {}, {}
    if teacher:
        with_teacher = cache.get("fidelity", both, lambda: fidelity(*both))
    if pictures:
        points = cache.get("tsne", [network], lambda: embedding(network))
    if pictures and teacher:
        stages = cache.get("cka", both, lambda: similarity(*both))
    return Looks(alone, with_teacher, points, stages)


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
