"""What every command that trains works out first: device, data, learning rates."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cli.start import Start, start_of
from dataset import DATASETS
from dataset.base import Batch, StreamedSet
from dataset.fingerprint import fingerprint, fingerprint_of_images
from dataset.loader import Loader, Loading
from dataset.stream import StreamLoader
from dataset.subset import AnySet, hold_out, take_fraction
from engine.device import Numerics, start
from engine.distributed import (
    is_main_process,
    local_main_process_first,
    on_main_process,
    rank,
    world_size,
)
from engine.objective import PooledOnce
from engine.recipe import Schedule, make_schedule
from helper.errors import UserError
from helper.files import check_writable
from helper.options import Resolved
from models.any import build, check_name, learning_rate
from models.base import Classifier, Statistics

TEST_BATCH = {"cpu": 64, "cuda": 500}  # images a step where nothing is trained


AnyLoader = Loader | StreamLoader | PooledOnce


class Loaders(NamedTuple):
    """Of each split, this process's share."""

    train: Loader | StreamLoader
    test: AnyLoader
    val: AnyLoader | None = None  # where images are held out

    @property
    def measured(self) -> AnyLoader:
        """What each epoch is measured on, and the best is chosen on."""
        return self.test if self.val is None else self.val


@dataclass(frozen=True)
class Setting:
    """The ground of a run."""

    options: Resolved
    model: str  # what is trained
    numerics: Numerics
    data: AnySet
    schedule: Schedule
    network_rate: float  # the learning rate that the network's recipe has
    fingerprint: str  # of all of the data set, whatever fraction of it is trained on
    images: str  # the same of its images alone, however they are augmented
    start: Start | None = None  # what the trained network starts from; None: random weights
    statistics: Statistics = ((), ())  # mean and std of the data set's own pixels

    @property
    def seed(self) -> int:
        """--seed, else the trial."""
        return self.options.trial if self.options.seed is None else self.options.seed

    @cached_property
    def draws_in_training(self) -> bool:
        """Whether a trained network draws random numbers: dropout, stochastic depth."""
        peer = self.options.values.get("peer")
        names = [self.model, peer] if peer else [self.model]
        with torch.random.fork_rng(devices=[]):
            return any(
                ("Drop" in type(m).__name__ or "Stochastic" in type(m).__name__)
                and getattr(m, "p", 1) > 0
                for name in names
                for m in self.network(name).modules()
            )

    def network(self, name: str) -> Classifier:
        """A new network for the classes and the image size of the data set."""
        return make_network(name, self.data)

    @property
    def peer_rate(self) -> float:
        """What the second student starts at."""
        return self.peer_rate_by(self.options.values)

    def peer_rate_by(self, values: Mapping[str, Any]) -> float:
        """The same by options with these values."""
        peer = self.options.peer
        of_network = learning_rate(self.data.networks.get(peer, peer))
        return values["peer_rate"] or values["learning_rate"] or of_network

    def trained_network(self) -> tuple[Classifier, str]:
        """The network that is trained, and a line on what it starts from; '' for random weights."""
        network = self.network(self.model)
        if self.start is None:
            return network, ""
        return network, self.start.load(network, self.model, tuple(self.data.classes))

    def images_as_they_are(self) -> Iterator[Batch]:
        """The training images in the data set's order, shown as test images are."""
        options, device = self.options, self.numerics.device
        how = Loading(0, device, rank(), world_size(), options.num_workers)
        data = replace(self.data, test=self.data.train)
        yield from make_loader(data, "test", TEST_BATCH[device.type], how).batches()

    def loaders(self, strong: bool = False) -> Loaders:
        """The batches of every split; with a `strong` view of each training image as well."""
        options, device = self.options, self.numerics.device
        aug = {"aug": options.aug, "randaugment": options.randaugment, "strong": strong}
        balanced = options.balance == "sampler"
        how = Loading(
            self.seed, device, rank(), world_size(), options.num_workers, **aug, balanced=balanced
        )
        streamed = isinstance(self.data, StreamedSet)
        test_size = options.batch_size if streamed else TEST_BATCH[device.type]
        train = make_loader(self.data, "train", options.batch_size, how)
        others = ["test", "val"] if self.data.val else ["test"]
        return Loaders(train, *(make_loader(self.data, name, test_size, how) for name in others))


def make_setting(options: Resolved, model: str) -> Setting:
    """Device, data and rates of a command that trains the network called `model`.

    A network that starts from trained weights is shown pixels normalised as for these.
    """
    if options.aug and options.randaugment:
        raise UserError("--aug and --randaugment: give one of them")
    network = DATASETS[options.dataset].networks.get(model, model)
    check_name(network)
    start_with = start_of(options, network)
    rate = learning_rate(network)
    schedule = make_schedule(options, rate)
    if (at := schedule.falls_together) and options.origin["lr_decay_epochs"] != "typed":
        warnings.warn(
            f"{options.epochs} epochs are too few for the recipe's decays: several fall on epoch "
            f"{at}, and the rate falls by all of them at once; --lr_decay_epochs sets others",
            stacklevel=2,
        )
    check_writable(Path(options.save_dir), "--save_dir")  # before the data, which may take minutes
    numerics = start(options)
    whole = load_data(options)
    known_as = on_main_process(lambda: (fingerprint(whole), fingerprint_of_images(whole)))
    rest = hold_out(whole, options.val_fraction, options.val_seed)
    data = take_fraction(rest, options.train_fraction, options.fraction_seed)
    own = (data.mean, data.std)
    if start_with and start_with.statistics:
        mean, std = (tuple(values) for values in start_with.statistics)
        data = replace(data, mean=mean, std=std)
    return Setting(options, model, numerics, data, schedule, rate, *known_as, start_with, own)


def load_data(options: Resolved) -> AnySet:
    """The data set that --dataset names."""
    entry = DATASETS[options.dataset]
    silence = nullcontext() if is_main_process() else redirect_stderr(io.StringIO())
    with local_main_process_first(), silence:
        return entry.load(options.read(entry.Options))


def make_network(name: str, data: AnySet) -> Classifier:
    """A new network for the classes and the image size of a data set."""
    return build(data.networks.get(name, name), len(data.classes), data.image_size)


def make_loader(data: AnySet, split: str, batch_size: int, how: Loading) -> Loader | StreamLoader:
    """The batches of one split."""
    if isinstance(data, StreamedSet):
        return StreamLoader(data, split, batch_size, how)
    return Loader(data, split, batch_size, how)
