from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from helper.options import at_most, option, positive
from models.adapters import to_smaller
from models.projected import Projected

from . import METHODS
from .base import Distiller, Recipe


@METHODS.register("simkd")
class SimKD(Distiller):
    """Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022 (SimKD).

    The student's last map goes through a projector to the teacher's, and is classified there by the
    teacher's classifier, which stays as it is. Loss: mean squared error of the two maps. What is
    trained, evaluated and kept is all of that; the student has no classifier of its own.

    Raises ValueError without last maps, or where the teacher's classifier is no linear layer.
    Reference: DefangChen/SimKD, models/util.py and helper/loops.py.
    """

    recipe = Recipe(gamma=0.0, alpha=0.0, beta=1.0)
    reads = frozenset({"last_map"})

    @dataclass(frozen=True)
    class Options:
        simkd_factor: int = option(
            2, "the teacher's channels over those within the projector", parse=at_most(64, positive)
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        for who, shown in (("student", setup.student), ("teacher", setup.teacher)):
            if shown.last_map is None:
                raise ValueError(
                    f"the {who} has no last map, only a vector of {tuple(shown.pooled.shape[1:])} "
                    "and logits: choose a method that reads those"
                )
        head = setup.teacher.head
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise ValueError("the teacher's classifier is no linear layer with a bias")
        self.channels = setup.student.last_map.shape[1]
        self.shape = tuple(setup.teacher.last_map.shape[1:])  # (C, H, W)

    def deployed(self, student, teacher):
        own = teacher.head
        factor, classes = self.options.simkd_factor, own.out_features
        network = Projected(student, self.channels, self.shape, factor, classes)
        network.to(own.weight)  # device and type
        network.classifier.load_state_dict(own.state_dict())
        network.classifier.requires_grad_(False)
        return network

    def forward(self, student, teacher, batch):
        return F.mse_loss(*to_smaller(student.last_map, teacher.last_map))
