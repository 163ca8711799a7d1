"""Data sets too large for memory: files that are read, augmented and batched as a run trains.

N samples, B batch, b a process's share of it, S x S images.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.augment import STRONG, draw, normalise, scale_and_shift
from dataset.base import Batch
from dataset.folder import cpu_count, open_image, resize_and_center_crop
from dataset.layout import Files
from dataset.loader import Loading, check_smallest_batch, epoch_order, rank_shares
from helper.errors import UserError

CROP = 4  # purpose of `draw`, after those of dataset.augment
CROP_RATIO = 224 / 256  # of a test image: side of the center crop / shorter side after resizing
PREFETCH = 4  # batches that each worker prepares in advance


@dataclass(frozen=True)
class StreamedSet:
    """A data set on disk: the image files of a training and a test split, read as a run trains."""

    name: str
    train: Files
    test: Files
    classes: tuple[str, ...]  # K names
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    image_size: int
    padding: int = 0  # border of the scaled image that crops are cut from; 0: random resized crops
    flip: bool = True  # whether half of the training images are flipped
    networks: Mapping[str, str] = field(default_factory=dict)  # see `DataSource`
    skip_corrupt: bool = False
    val: Files | None = None  # held out of the training split, see `subset.hold_out`


class StreamLoader:
    """Batches of one split like those of `dataset.loader.Loader`, from files on disk.

    Training images are cropped at random (8 to 100 % of the area, Szegedy et al., Going Deeper with
    Convolutions, CVPR 2015; or, with a padding, as images in memory are) and flipped; AutoAugment's
    policy is ImageNet's. Their second, strong
    view is another crop and flip with RandAugment(2, 10) behind them. Other images are
    resized and center-cropped. All choices follow from (seed, epoch, sample), whatever the number
    of workers.

    A file that is no image is a UserError, or is left out of its batch with `skip_corrupt`: then it
    is named once, and counted at the end of each pass.
    """

    def __init__(
        self,
        data: StreamedSet,
        split: Literal["train", "val", "test"],
        batch_size: int,
        how: Loading,
    ):
        files: Files = getattr(data, split)
        workers = min(how.workers, cpu_count())
        if data.skip_corrupt and how.ranks > 1:
            raise UserError(
                "--skip_corrupt needs one process, since all have to know what is in a batch: "
                "remove the files it names"
            )
        self.split, self.training = split, split == "train"
        self.strong = how.strong and self.training
        self.seed, self.skip = how.seed, data.skip_corrupt
        labels = torch.tensor(files.labels)  # (N,)
        self.labels, self._order = labels.to(how.device), partial(epoch_order, how, labels=labels)
        self._batch_size = batch_size
        if self.training:
            check_smallest_batch(len(files.paths), batch_size, how.ranks)
        self._shares = rank_shares(len(files.paths), batch_size, how.rank, how.ranks)
        self._scale, self._shift = scale_and_shift(data.mean, data.std, how.device)  # (3, 1, 1)
        self._sampler = BatchSampler(self._shares)
        self._corrupt: set[str] = set()
        self._batches = DataLoader(
            ImageFiles(files.paths, data, self.training, how),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=partial(collate, size=data.image_size),
            pin_memory=torch.device(how.device).type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            generator=torch.Generator(),  # seeds workers, instead of the global generator
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._shares)

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch: shuffled and augmented, or another split as it is."""
        n, device, skipped = len(self.labels), self.labels.device, 0
        order = self._order(epoch) if self.training else torch.arange(n)
        self._sampler.epoch, self._sampler.order = epoch, order
        indices = order.to(device).split(self._batch_size)
        for (pixels, readable, problems), index in zip(self._batches, indices, strict=True):
            if problems:
                skipped += len(problems)
                self._report_corrupt(problems)
                index = index[readable.to(device)]
            if len(index):
                pixels = pixels.to(device, non_blocking=True)
                images = normalise(pixels, self._scale, self._shift)
                images = images.transpose(0, 1) if self.strong else images[:, 0]
                yield Batch(images, self.labels[index], index)
        if skipped:
            print(f"{skipped} of {n} files are no images and were skipped", file=sys.stderr)

    def _report_corrupt(self, problems: list[str]) -> None:
        """UserError, or with `skip_corrupt` a line for each file that was not named before."""
        for problem in problems:
            if not self.skip:
                raise UserError(f"{problem}, or skip such files with --skip_corrupt")
            if problem not in self._corrupt:
                print(f"skipped: {problem}", file=sys.stderr)
        self._corrupt.update(problems)


class BatchSampler:
    """Which images a process reads for each batch: (epoch, index) of every image of its share.

    `epoch` and `order` (N,), the indices of all samples, are set before each pass.
    """

    def __init__(self, shares: list[tuple[int, int]]):
        self.shares, self.epoch, self.order = shares, 0, torch.empty(0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for lo, hi in self.shares:
            yield [(self.epoch, index) for index in self.order[lo:hi].tolist()]

    def __len__(self) -> int:
        return len(self.shares)


class Paths(Sequence[str]):
    """Names of files as one block of bytes that all processes share.

    A list of a million strings becomes each worker's own: to read one is to count a reference.
    """

    def __init__(self, paths: Iterable[str]):
        text = os.fsencode("\0".join(paths)) + b"\0"
        self._text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._ends = (self._text == 0).nonzero()[:, 0]  # (N,)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] + 1 if index else 0
        return os.fsdecode(self._text[start : self._ends[index]].numpy().tobytes())


class ImageFiles(Dataset):
    """(epoch, index) -> V views of an image (V, 3, S, S) uint8, or what is wrong with that file."""

    def __init__(self, paths: list[str], data: StreamedSet, training: bool, how: Loading):
        importlib.import_module("helper.vision")  # lets torchvision be imported; takes seconds
        v2 = importlib.import_module("torchvision.transforms.v2")
        size, padding = data.image_size, data.padding
        self.shorter = size if padding else 0 if training else round(size / CROP_RATIO)  # 0: varies
        if padding:
            transforms = [partial(resize_and_center_crop, size=size)]
            transforms += [v2.RandomCrop(size, padding)] if training else []
        elif training:
            transforms = [v2.RandomResizedCrop(size)]
        else:
            transforms = [v2.Resize(self.shorter), v2.CenterCrop(size)]
        if training:
            transforms += [v2.RandomHorizontalFlip()] if data.flip else []
            transforms += [v2.AutoAugment()] if how.aug else []
        self.paths, self.seed = Paths(paths), how.seed
        own = [v2.RandAugment(2, 10)] if how.randaugment and training else []
        self.transforms = {CROP: v2.Compose([*transforms, *own, v2.PILToTensor()])}
        if how.strong and training:
            strong = [*transforms, v2.RandAugment(2, 10), v2.PILToTensor()]
            self.transforms[CROP + STRONG] = v2.Compose(strong)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Tensor | str:
        epoch, index = key
        try:
            image = open_image(self.paths[index], self.shorter)
        except UserError as error:
            return str(error)
        views = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's generator
            for purpose, transform in self.transforms.items():  # and the GPU's is the networks'
                seed = draw(self.seed, epoch, purpose, torch.tensor([index])).item()
                torch.default_generator.manual_seed(seed)
                views.append(transform(image))
        return torch.stack(views)


def collate(items: list[Tensor | str], size: int) -> tuple[Tensor, Tensor, list[str]]:
    """A batch of images (V, 3, S, S) and problems -> images, which items are images, problems.

    The images are (M, V, 3, S, S), M may be 0; the flags are (b,) bool with M of them true.
    """
    readable = torch.tensor([isinstance(item, Tensor) for item in items], dtype=torch.bool)
    images = [item for item in items if isinstance(item, Tensor)]
    problems = [item for item in items if isinstance(item, str)]
    pixels = torch.stack(images) if images else torch.empty(0, 1, 3, size, size, dtype=torch.uint8)
    return pixels, readable, problems


def is_loss_of_a_reader(error: BaseException) -> bool:
    """Whether an exception means that a process that reads or decodes images was killed."""
    return isinstance(error, BrokenExecutor) or str(error).startswith("DataLoader worker")
