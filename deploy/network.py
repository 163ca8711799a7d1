"""A trained network by itself, read from a checkpoint or from a folder that tools/export.py wrote.

B batch, S x S images, K classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset import DATASETS
from helper.errors import UserError
from models.any import Wrapped
from models.base import Classifier
from runs import checkpoint

NEEDED = ("classes", "image_size", "mean", "std")  # what a checkpoint has to say of its data


@dataclass(frozen=True)
class Deployed:
    """A network in eval, and what its images have to be like."""

    name: str  # what `models.any.build` makes it of
    network: Classifier
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]  # of pixels from 0 to 1
    std: tuple[float, float, float]
    crop_pct: float = 1.0  # side of the center crop / shorter side of the image after resizing

    @property
    def module(self) -> nn.Module:
        """The network; one from elsewhere without what finds its features."""
        return self.network.network if isinstance(self.network, Wrapped) else self.network

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1, (B, 3, S, S) -> what the network reads."""
        mean, std = (torch.tensor(x)[:, None, None] for x in (self.mean, self.std))
        return (pixels - mean) / std


class Normalised(nn.Module):
    """A network behind the normalisation of its images: pixels from 0 to 1 -> logits."""

    def __init__(self, deployed: Deployed):
        super().__init__()
        self.network = deployed.module
        mean, std = (torch.tensor(x)[:, None, None] for x in (deployed.mean, deployed.std))
        self.register_buffer("mean", mean, persistent=False)  # (3, 1, 1)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K)"""
        return self.network((images - self.mean) / self.std)


def read_deployed(path: Path, name: str = "") -> Deployed:
    """The network of a checkpoint, or of an exported folder; `name` where it is not in the file.

    Raises UserError where it is none, or does not say what its images have to be like.
    """
    name = name or checkpoint.network_of(path, "-m")
    said = checkpoint.data_of(path)
    if missing := [key for key in NEEDED if key not in said]:
        raise UserError(
            f"{path} does not say its {', '.join(missing)}: give a checkpoint of train_teacher.py "
            "or train_student.py, in which they stand"
        )
    classes, size = tuple(said["classes"]), said["image_size"]
    known_as = DATASETS[said["dataset"]].networks if said.get("dataset") in DATASETS else {}
    network = checkpoint.read_network(known_as.get(name, name), path, len(classes), size)
    pixels = tuple(said["mean"]), tuple(said["std"]), said.get("crop_pct", 1.0)
    return Deployed(network.name, network, classes, size, *pixels)
