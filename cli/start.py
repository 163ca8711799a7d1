"""What a network starts from, where it is not from random weights: --pretrained or --init."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from engine.distributed import local_main_process_first
from helper.errors import UserError
from helper.options import Resolved
from models.base import Classifier, Statistics
from models.pretrained import pretrained
from runs import checkpoint


@dataclass(frozen=True)
class Start:
    """Weights to start from, and what is said of them."""

    label: str  # which they are, as a value of an experiment's option
    source: str  # a file or a name, for messages
    read: Callable[[], Mapping[str, Tensor]]  # their state dict
    statistics: Statistics | None = None  # of the pixels that they were trained on
    classes: tuple[str, ...] | None = None  # that they were trained for

    def load(self, network: Classifier, name: str, classes: tuple[str, ...]) -> str:
        """Give a new network these weights -> what was done, in one line.

        The classifier stays as it is where theirs is for other classes.
        """
        own = network.state_dict()
        with local_main_process_first():
            weights = dict(self.read())
        head = {key: own[key] for key in own if key.startswith(f"{network.head_name}.")}
        shapes = {key: weights[key].shape for key in head if key in weights}
        new = self.classes not in (None, classes) or shapes != {k: x.shape for k, x in head.items()}
        if new:
            weights = {key: x for key, x in weights.items() if key not in shapes} | head
        checkpoint.load_into(network, weights, self.source, f"{name} with {len(classes)} classes")
        had = f" (they had {next(iter(shapes.values()))[0]})" if shapes else ""
        own_head = f", with a new classifier for these {len(classes)} classes{had}" if new else ""
        pixels = "" if self.statistics else "; it says no mean and std: those of these images"
        return f"start:     {self.source}{own_head}{pixels}"


def start_of(options: Resolved, network: str) -> Start | None:
    """What the options of a command say that `network` starts from; None for random weights."""
    published, file = options.values.get("pretrained"), options.values.get("init")
    if published and file:
        raise UserError("--pretrained and --init both say what to start from: give one of them")
    if published:
        found = pretrained(network)
        source = f"{found.label} of {network}"
        return Start(found.label, source, found.read, found.statistics)
    return start_from(Path(file)) if file else None


def start_from(path: Path) -> Start:
    """The weights of a checkpoint or a file of weights; UserError where it holds none."""
    said = checkpoint.data_of(path)
    statistics = (said["mean"], said["std"]) if {"mean", "std"} <= said.keys() else None
    classes = tuple(said["classes"]) if "classes" in said else None
    read = lambda: checkpoint.weights_of(path)  # noqa: E731
    return Start(checkpoint.digest(path)[:12], str(path), read, statistics, classes)
