from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from helper.options import count, option
from models.adapters import Regressor
from models.base import Features

from . import METHODS
from .base import Distiller, Recipe


@METHODS.register("hint")
class Hint(Distiller):
    """Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (eq. 3).

    Mean squared error between the student's map of one layer, through a convolutional regressor,
    and the teacher's.

    Raises ValueError where a network has no such layer, or no convolution joins the sizes.
    Reference: HobbitLong/RepDistiller, distiller_zoo/FitNet.py and models/util.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=100.0)
    reads = frozenset({"stem", "stages"})

    @dataclass(frozen=True)
    class Options:
        hint_layer: int = option(2, "stage to compare, counted from 1; 0 is the stem", parse=count)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        s, t = self.layer(setup.student, "student"), self.layer(setup.teacher, "teacher")
        self.regressor = Regressor(s.shape, t.shape)

    def layer(self, features: Features, who: str) -> Tensor:
        """The map to compare: (B, C, H, W)"""
        maps = [features.stem, *features.stages] if features.stages else []
        if self.options.hint_layer >= len(maps):
            shapes = ", ".join(f"{i} {tuple(m.shape[1:])}" for i, m in enumerate(maps)) or "no maps"
            raise ValueError(
                f"the {who} has no layer {self.options.hint_layer}; it has {shapes}: "
                "choose another --hint_layer"
            )
        return maps[self.options.hint_layer]

    def forward(self, student, teacher, batch):
        s, t = self.layer(student, "student"), self.layer(teacher, "teacher")
        return F.mse_loss(self.regressor(s), t)
