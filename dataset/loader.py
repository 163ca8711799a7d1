"""The loader of images in memory: the whole split lies on the device, without worker processes.

A split is one uint8 tensor; one too large for the GPU stays in host memory. Some thousand images at
a time are gathered, cropped and flipped as bytes; each batch is turned into normalised floats when
it is asked for. N samples, B batch.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dataset.augment import (
    STRONG,
    Views,
    balanced_order,
    choose_views,
    count_views,
    crop_and_flip,
    new_canvas,
    normalise,
    number_views,
    permutation,
    scale_and_shift,
    views_of,
    without_waiting,
)
from dataset.autoaugment import auto_augment
from dataset.base import Batch, DataSet, Split
from dataset.randaugment import rand_augment
from dataset.resized import Boxes, choose_boxes, crop_resize_and_flip
from helper.errors import UserError

SHARE = 0.5  # of the memory that is free on a GPU; with more than that, images stay outside
CHUNK_BYTES = 3 << 20  # of images augmented at once: few calls a batch, and it fits the cache


@dataclass(frozen=True)
class Loading:
    """How a process of a run loads its batches."""

    seed: int = 0
    device: torch.device | str = "cpu"  # where they are wanted
    rank: int = 0  # number of the process, of `ranks`
    ranks: int = 1
    workers: int = 0  # processes that read image files
    aug: bool = False  # AutoAugment behind crop and flip of training images
    randaugment: bool = False  # RandAugment there
    strong: bool = False  # a second view of each: another crop and flip, RandAugment behind them
    balanced: bool = False  # training images of each class alike often


def epoch_order(how: Loading, epoch: int, labels: Tensor) -> Tensor:
    """The training samples of an epoch in order: labels (N,) on the CPU -> (N,) int64"""
    if how.balanced:
        return balanced_order(how.seed, epoch, labels)
    return permutation(how.seed, epoch, len(labels))


class Loader:
    """Batches of one split; the same ones, bit for bit, for the same (seed, epoch).

    `batch_size` counts the images of all ranks together; each rank yields its own contiguous share
    of the images of every batch, and the labels and indices of all. Shares differ by at most one
    image. The last batch may be smaller. A rank's share of a test batch can be empty. A sample that
    comes several times in a `balanced` epoch shows one view, and a teacher's row of it is one.
    AutoAugment's policy is CIFAR's, RandAugment is that of two operations of magnitude 10.
    Raises UserError if a training batch has fewer images than there are ranks, ValueError if the
    data set is not as `dataset.base` describes it.
    """

    def __init__(
        self,
        data: DataSet,
        split: Literal["train", "val", "test"],
        batch_size: int,
        how: Loading,
    ):
        there = [name for name in ("train", "val", "test") if getattr(data, name)]
        if split not in there:
            raise ValueError(f"split is {split!r}; there are {' and '.join(map(repr, there))}")
        rank, ranks = how.rank, how.ranks
        if batch_size < 1 or not 0 <= rank < ranks:
            raise ValueError(
                f"batch_size is {batch_size}, rank {rank} of {ranks}: "
                "at least one image and a rank below the number of ranks are needed"
            )
        chosen: Split = getattr(data, split)
        check_split(data.name, split, chosen, len(data.classes))
        self.split, self.training = split, split == "train"
        self.seed, self.padding, self.flip = how.seed, data.padding, data.flip
        self.resized = data.resized
        self.aug = how.aug or how.randaugment or data.resized  # whether views are without number
        self._auto, self._rand = how.aug, how.randaugment
        self.strong = how.strong and self.training
        images, about = chosen.images.contiguous(), f"{split} split of {data.name}"
        self.images = place(images, torch.device(how.device), about if rank == 0 else "")
        self.labels = chosen.labels.to(how.device)  # (N,)
        self._order = partial(epoch_order, how, labels=chosen.labels.cpu())
        self._batch_size = batch_size
        self._shares = rank_shares(len(self.labels), batch_size, rank, ranks)
        self._scale, self._shift = scale_and_shift(data.mean, data.std, how.device)  # (3, 1, 1)
        if self.training:
            check_smallest_batch(len(self.labels), batch_size, ranks)

    def __len__(self) -> int:
        """Batches in an epoch, the same number on every rank."""
        return len(self._shares)

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch: shuffled and augmented, or another split as it is."""
        n, device = len(self.labels), self.labels.device
        order = self._order(epoch) if self.training else torch.arange(n)
        own_cpu = torch.cat([order[lo:hi] for lo, hi in self._shares])  # samples of this rank
        sizes = [hi - lo for lo, hi in self._shares]
        capacity = max(*sizes, CHUNK_BYTES // self.images[0].numel())
        if self.training:
            salts = [0, STRONG] if self.strong else [0]
            views = [self._choose_views(epoch, own_cpu, salt) for salt in salts]
            views = [type(v)(*(without_waiting(choice, device) for choice in v)) for v in views]
            canvas = new_canvas(self.images[:0].to(device), capacity, self.padding)
        own = without_waiting(own_cpu, self.images.device)
        order = without_waiting(order, device)
        batches = zip(order.split(self._batch_size), self.labels[order].split(self._batch_size))
        start = 0
        for chunk in group_sizes(sizes, capacity):
            span = slice(start, start + sum(chunk))
            shown = [self._pixels(own[span])]
            if self.training:
                chosen = [type(v)(*(choice[span] for choice in v)) for v in views]
                cropped = [self._crop(*shown, v, canvas) for v in chosen]
                shown = [
                    self._augment_more(images, epoch, own_cpu[span], salt)
                    for images, salt in zip(cropped, salts)
                ]
            for *pixels, (index, labels) in zip(*(x.split(chunk) for x in shown), batches):
                images = torch.stack(pixels) if self.strong else pixels[0]
                yield Batch(normalise(images, self._scale, self._shift), labels, index)
            start = span.stop

    @property
    def views(self) -> int:
        """How many views of a training image have a number: 1 where they are resized."""
        return 1 if self.resized else count_views(self.padding, self.flip)

    def epoch_views(self, epoch: int) -> Tensor:
        """The number of the view in which an epoch shows each training sample: (N,), on the CPU."""
        every = torch.arange(len(self.labels))
        if self.resized:
            return torch.zeros_like(every)
        chosen = self._choose_views(epoch, every)
        return number_views(chosen, self.padding, self.flip)

    def show(self, index: Tensor, views: Tensor, epoch: int = 0) -> Tensor:
        """Chosen views of chosen training samples, as `batches` gives them in that epoch.

        index, views: (M,) on the CPU -> (M, 3, H, W) normalised, on the device.
        """
        images = self._pixels(index.to(self.images.device))
        if self.resized:
            chosen = self._choose_views(epoch, index)
        else:
            chosen = views_of(views, self.padding, self.flip)
        chosen = type(chosen)(*(x.to(images.device) for x in chosen))
        images = self._crop(images, chosen, new_canvas(images, len(index), self.padding))
        return normalise(self._augment_more(images, epoch, index), self._scale, self._shift)

    def _crop(self, images: Tensor, views: Views | Boxes, canvas: Tensor) -> Tensor:
        """Images (M, 3, H, W) uint8 in these views; the canvas is for those of a black border."""
        if self.resized:
            return crop_resize_and_flip(images, views)
        return crop_and_flip(images, views, canvas)

    def _choose_views(self, epoch: int, index: Tensor, salt: int = 0) -> Views | Boxes:
        """The crops and flips of samples (M,) in an epoch; `salt` is STRONG for the second view."""
        if self.resized:
            size = tuple(self.images.shape[2:])
            return choose_boxes(self.seed, epoch, index, size, self.flip, salt)
        return choose_views(self.seed, epoch, index, self.padding, self.flip, salt)

    def _augment_more(self, images: Tensor, epoch: int, index: Tensor, salt: int = 0) -> Tensor:
        """What comes behind crop and flip: images (M, 3, H, W) uint8 of samples (M,) -> the same"""
        if self._auto:
            images = auto_augment(images, self.seed, epoch, index, salt)
        if self._rand or salt:  # the strong view's is the one without a salt
            images = rand_augment(images, self.seed, epoch, index, STRONG - salt)
        return images

    def _pixels(self, index: Tensor) -> Tensor:
        """Images by number: (M,) where the images are -> (M, 3, H, W) uint8 on the device."""
        return without_waiting(self.images.index_select(0, index), self.labels.device)


def place(images: Tensor, device: torch.device, name: str) -> Tensor:
    """Images (N, 3, H, W) on a device, or where they are if it has no room for them.

    That is said of the split called `name`, "" for nothing.
    """
    room = free_bytes(device)
    if images.nbytes <= SHARE * room:
        return images.to(device)
    if name:
        size, free = (f"{x / 1e6:,.1f} MB" for x in (images.nbytes, room))
        print(
            f"{name}: {size} of images stay in host memory, {device} has {free} free",
            file=sys.stderr,
        )
    return images


def free_bytes(device: torch.device) -> float:
    """Memory that is free on a GPU; without end elsewhere, where the images are already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def rank_shares(n: int, batch_size: int, rank: int, ranks: int) -> list[tuple[int, int]]:
    """Where a rank's share of each batch starts and ends in the order of an epoch of n samples."""
    batches = [(lo, min(batch_size, n - lo)) for lo in range(0, n, batch_size)]
    return [(lo + size * rank // ranks, lo + size * (rank + 1) // ranks) for lo, size in batches]


def smallest_batch(n: int, batch_size: int) -> int:
    """How many of n images the last batch has."""
    return n % batch_size or batch_size


def check_smallest_batch(n: int, batch_size: int, ranks: int) -> None:
    """UserError if a batch of n training images has fewer of them than there are processes."""
    smallest = smallest_batch(n, batch_size)
    if smallest < ranks:
        raise UserError(
            f"batch size {batch_size} leaves a last batch of {smallest} of the {n} training "
            f"images, too few for {ranks} processes: choose another batch size"
        )


def group_sizes(sizes: list[int], limit: int) -> Iterator[list[int]]:
    """Group consecutive sizes so that each group adds up to at most `limit`, or is one size."""
    group: list[int] = []
    for size in sizes:
        if group and sum(group) + size > limit:
            yield group
            group = []
        group.append(size)
    yield group


def check_split(name: str, split: str, data: Split, classes: int) -> None:
    """ValueError unless shapes, types and labels of a split are those of `dataset.base.Split`."""
    images, labels = data.images, data.labels
    where = f"{split} split of data set {name!r}"
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"{where}: images are {tuple(images.shape)} {images.dtype}, not (N, 3, H, W) uint8"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"{where}: labels are {tuple(labels.shape)} {labels.dtype}, "
            f"not ({len(images)},) int64 with at least one sample"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{where}: a label is outside 0..{classes - 1}")
