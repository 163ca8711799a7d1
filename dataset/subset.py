"""Random parts of a training split. N samples, K classes."""

from dataclasses import replace

import torch
from torch import Tensor

from dataset.augment import draw, members_by_class
from dataset.base import DataSet, Split, StreamedSet
from dataset.layout import Files, Paths
from helper.errors import UserError

AnySet = DataSet | StreamedSet
SUBSET, HELD_OUT = 5, 6  # purposes of `draw`, after those of dataset.augment and dataset.stream


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
    kept = stratified(data.train.labels.cpu(), fraction, seed)
    return replace(data, train=part_of(data.train, kept))


def hold_out(data: AnySet, fraction: float, seed: int) -> AnySet:
    """The same data with a stratified random part of its training split moved into `val`.

    Each class keeps round((1 - fraction) * its size) images to train on, at least one. Both parts
    have their old order; `Batch.index` counts the images of its own part. A fraction of 0 returns
    `data` itself. UserError for data that has a `val` of its own.
    """
    if fraction == 0:
        return data
    if data.val:
        raise UserError(
            f"--val_fraction: {data.name} has held-out images of its own (val/): leave the flag out"
        )
    labels = data.train.labels.cpu()
    kept = stratified(labels, 1 - fraction, seed, HELD_OUT)
    held = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, kept, False).nonzero()[:, 0]
    if not len(held):
        raise UserError(
            f"--val_fraction {fraction:g} holds out none of {len(labels)} training images: "
            "give more"
        )
    return replace(data, train=part_of(data.train, kept), val=part_of(data.train, held))


def part_of(split: Split | Files, kept: Tensor) -> Split | Files:
    """Some samples of a split, by number: (M,) int64 on the CPU."""
    if isinstance(split, Split):
        kept = kept.to(split.labels.device)
        return Split(split.images[kept], split.labels[kept])
    names = list(split.paths)
    paths = Paths(names[i] for i in kept.tolist())
    return split._replace(paths=paths, labels=split.labels[kept])


def stratified(labels: Tensor, fraction: float, seed: int, purpose: int = SUBSET) -> Tensor:
    """Which samples are kept: labels (N,) -> sorted indices (M,), int64."""
    shuffled = draw(seed, 0, purpose, torch.arange(len(labels))).argsort(stable=True)
    by_class = members_by_class(shuffled, labels)
    kept = [members[: max(1, round(fraction * len(members)))] for members in by_class]
    return torch.cat(kept).sort().values
