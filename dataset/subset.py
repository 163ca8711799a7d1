"""A random part of a training split. N samples, K classes."""

from dataclasses import replace

import torch
from torch import Tensor

from dataset.augment import draw
from dataset.base import DataSet, Split
from dataset.stream import StreamedSet

AnySet = DataSet | StreamedSet
SUBSET = 5  # purpose of `draw`, after those of dataset.augment and dataset.stream


def take_fraction(data: AnySet, fraction: float, seed: int) -> AnySet:
    """The same data with a stratified random part of its training split.

    Each class keeps round(fraction * its size) images, at least one, in their old order. They
    follow from the seed alone, and are nested: a smaller fraction takes some of the images that a
    larger one takes. The test split, mean and std stay those of the data as it was loaded, so that
    all fractions are normalised and tested alike. A fraction of 1 returns `data` itself.

    Raises ValueError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of {fraction} of the training images: it is in (0, 1]")
    if fraction == 1:
        return data
    train = data.train
    if isinstance(data, DataSet):
        kept = stratified(train.labels.cpu(), fraction, seed).to(train.labels.device)
        return replace(data, train=Split(train.images[kept], train.labels[kept]))
    kept = stratified(torch.tensor(train.labels), fraction, seed).tolist()
    paths, labels = [train.paths[i] for i in kept], [train.labels[i] for i in kept]
    return replace(data, train=train._replace(paths=paths, labels=labels))


def stratified(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Which samples are kept: labels (N,) -> sorted indices (M,), int64."""
    shuffled = draw(seed, 0, SUBSET, torch.arange(len(labels))).argsort(stable=True)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = labels.bincount().tolist()  # (K,)
    kept = [
        members[: max(1, round(fraction * size))]
        for members, size in zip(by_class.split(sizes), sizes)
    ]
    return torch.cat(kept).sort().values
