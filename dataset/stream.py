"""Data sets too large for memory: files that are read, augmented and batched as a run trains.

N samples, B batch, b a process's share of it, S x S images.
"""

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.augment import STRONG, draw, normalise, scale_and_shift, without_waiting
from dataset.base import Batch, StreamedSet
from dataset.folder import SKIP_THEM, cpu_count, open_image, resize_and_center_crop
from dataset.layout import Files, Paths
from dataset.loader import Loading, check_smallest_batch, epoch_order, rank_shares
from helper.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

CROP = 4  # purpose of `draw`, after those of dataset.augment
PREFETCH = 4  # batches that each worker prepares in advance


class StreamLoader:
    """Batches of one split like those of `dataset.loader.Loader`, from files on disk.

    Training images are cropped at random (8 to 100 % of the area, Szegedy et al., Going Deeper with
    Convolutions, CVPR 2015; or, with a padding, as images in memory are) and flipped; AutoAugment's
    policy is ImageNet's. Their second, strong view is another crop and flip with RandAugment(2, 10)
    behind them. Other images are resized and center-cropped. All choices follow from (seed, epoch,
    sample), whatever the number of workers.

    A file that is no image is a UserError.
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
        self.split, self.training = split, split == "train"
        self.strong = how.strong and self.training
        self.seed = how.seed
        self.labels = files.labels.to(how.device)  # (N,)
        self._order = partial(epoch_order, how, labels=files.labels)
        self._batch_size = batch_size
        if self.training:
            check_smallest_batch(len(files.paths), batch_size, how.ranks)
        self._scale, self._shift = scale_and_shift(data.mean, data.std, how.device)  # (3, 1, 1)
        self._sampler = BatchSampler(self._indices, how.rank, how.ranks)
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
        return -(-len(self.labels) // self._batch_size)

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch: shuffled and augmented, or another split as it is."""
        device = self.labels.device
        self._sampler.epoch = epoch
        for pixels, index in zip(self._batches, self._indices(epoch)):
            if isinstance(pixels, str):
                raise UserError(f"{pixels}{SKIP_THEM}")
            index = without_waiting(index, device)
            images = normalise(pixels.to(device, non_blocking=True), self._scale, self._shift)
            images = images.transpose(0, 1) if self.strong else images[:, 0]
            yield Batch(images, self.labels[index], index)

    def _indices(self, epoch: int) -> Iterator[Tensor]:
        """The samples of each batch, of all processes together, on the CPU."""
        order = self._order(epoch) if self.training else torch.arange(len(self.labels))
        yield from order.split(self._batch_size)


class BatchSampler:
    """Which images a process reads for each batch: (epoch, index) of every image of its share.

    `epoch` is set before each pass; `batches` gives the indices (B,) of all processes in it. It is
    called when the workers are there, which else had a copy each of what it draws.
    """

    def __init__(self, batches: Callable[[int], Iterator[Tensor]], rank: int, ranks: int):
        self.batches, self.rank, self.ranks, self.epoch = batches, rank, ranks, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for index in self.batches(self.epoch):
            ((lo, hi),) = rank_shares(len(index), len(index), self.rank, self.ranks)
            yield [(self.epoch, i) for i in index[lo:hi].tolist()]


def torchvision_transforms() -> ModuleType:
    """torchvision's v2; it takes seconds to import."""
    importlib.import_module("helper.vision")  # lets torchvision be imported
    return importlib.import_module("torchvision.transforms.v2")


def cut_for_test(image: "Image.Image", size: int, crop_pct: float) -> "Image.Image":
    """Resize the shorter side to `size` / `crop_pct`, then crop a square from the center."""
    if crop_pct == 1:
        return resize_and_center_crop(image, size)
    functional = torchvision_transforms().functional
    return functional.center_crop(functional.resize(image, [round(size / crop_pct)]), [size])


class ImageFiles(Dataset):
    """(epoch, index) -> V views of an image (V, 3, S, S) uint8, or what is wrong with that file."""

    def __init__(self, paths: Paths, data: StreamedSet, training: bool, how: Loading):
        v2 = torchvision_transforms()
        size, padding = data.image_size, data.padding
        if training and not padding:
            self.shorter, transforms = 0, [v2.RandomResizedCrop(size)]  # 0: varies
        else:
            self.shorter = round(size / data.crop_pct)
            transforms = [partial(cut_for_test, size=size, crop_pct=data.crop_pct)]
            transforms += [v2.RandomCrop(size, padding)] if training else []
        if training:
            transforms += [v2.RandomHorizontalFlip()] if data.flip else []
            transforms += [v2.AutoAugment()] if how.aug else []
        self.paths, self.seed = paths, how.seed
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


def collate(items: list[Tensor | str], size: int) -> Tensor | str:
    """A batch of images (V, 3, S, S), b of them -> (b, V, 3, S, S), or the first problem."""
    for item in items:
        if isinstance(item, str):
            return item
    return torch.stack(items) if items else torch.empty(0, 1, 3, size, size, dtype=torch.uint8)


def is_loss_of_a_reader(error: BaseException) -> bool:
    """Whether an exception means that a process that reads or decodes images was killed."""
    return isinstance(error, BrokenExecutor) or str(error).startswith("DataLoader worker")
