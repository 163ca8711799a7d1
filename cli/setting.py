"""What every command that trains works out first: device, data, learning rates."""

import os
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from dataset import DATASETS
from dataset.base import DataSet
from dataset.fingerprint import fingerprint
from dataset.loader import Loader
from dataset.stream import StreamedSet, StreamLoader
from dataset.subset import take_fraction
from engine.device import Numerics, start
from engine.distributed import local_main_process_first, on_main_process, rank, world_size
from engine.recipe import Schedule, make_schedule
from helper.options import Resolved
from models.any import build, check_name, learning_rate
from models.base import Classifier

AnySet = DataSet | StreamedSet
TEST_BATCH = {"cpu": 64, "cuda": 500}  # images a step where nothing is trained


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

    @property
    def seed(self) -> int:
        """--seed, else the trial."""
        return self.options.trial if self.options.seed is None else self.options.seed

    @cached_property
    def draws_in_training(self) -> bool:
        """Whether the trained network draws random numbers: dropout, stochastic depth."""
        with torch.random.fork_rng(devices=[]):
            modules = self.network(self.model).modules()
            return any(
                "Drop" in type(m).__name__ or "Stochastic" in type(m).__name__ for m in modules
            )

    def network(self, name: str) -> Classifier:
        """A new network for the classes and the image size of the data set."""
        return make_network(name, self.data)

    def loaders(self) -> tuple[Loader, Loader]:
        """Training and test loader of this process's shares."""
        options, device = self.options, self.numerics.device
        how = {"workers": options.num_workers, "seed": self.seed, "device": device}
        streamed = isinstance(self.data, StreamedSet)
        test_size = options.batch_size if streamed else TEST_BATCH[device.type]
        train = make_loader(self.data, "train", options.batch_size, aug=options.aug, **how)
        return train, make_loader(self.data, "test", test_size, **how)


def make_setting(options: Resolved, model: str) -> Setting:
    """Device, data and rates of a command that trains the network called `model`."""
    entry = DATASETS[options.dataset]
    check_name(entry.networks.get(model, model))
    numerics = start(options)
    whole = load_data(options)
    fraction = options.train_fraction, options.fraction_seed
    data = take_fraction(whole, *fraction)
    known_as = on_main_process(lambda: fingerprint(whole))
    rate = learning_rate(data.networks.get(model, model))
    return Setting(options, model, numerics, data, make_schedule(options, rate), rate, known_as)


def load_data(options: Resolved) -> AnySet:
    """The data set that --dataset names."""
    entry = DATASETS[options.dataset]
    return local_main_process_first(lambda: entry.load(options.read(entry.Options)))


def make_network(name: str, data: AnySet) -> Classifier:
    """A new network for the classes and the image size of a data set."""
    return build(data.networks.get(name, name), len(data.classes), data.image_size)


def make_loader(data: AnySet, split: str, batch_size: int, workers: int, **how: Any):
    """The batches of one split that this process has; `how` is for the loader."""
    mine = {**how, "rank": rank(), "ranks": world_size()}
    if isinstance(data, StreamedSet):
        return StreamLoader(data, split, batch_size, workers=workers, **mine)
    return Loader(data, split, batch_size, **mine)


def data_facts(setting: Setting) -> dict[str, Any]:
    """What a run and its checkpoints remember of the data."""
    options, data = setting.options, setting.data
    names = [f.name for f in fields(DATASETS[options.dataset].Options)]
    values = {name: plain_value(options.values[name]) for name in names}
    if options.origin.get("data_dir") == "typed":  # it is looked for from anywhere
        values["data_dir"] = os.path.abspath(values["data_dir"])
    return {
        "dataset": options.dataset,
        "data_options": values,
        "fingerprint": setting.fingerprint,
        "data": data.name,
        "classes": list(data.classes),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
