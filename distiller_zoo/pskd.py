from dataclasses import dataclass

import torch
import torch.nn.functional as F

from helper.options import option, share

from . import METHODS
from .base import Distiller, Recipe


@METHODS.register("pskd")
class PSKD(Distiller):
    """Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021.

    There is no teacher but the student one epoch ago. Cross-entropy with the target (1 - a) * label
    + a * what the student said of the sample in the epoch before, mean over the batch; a grows
    linearly over the epochs to `pskd_alpha` in the last one. In the first epoch the target is the
    label. Predictions are probabilities at temperature 1, of whichever crop was shown then, and
    are kept for every training sample: 20 MB for CIFAR-100.

    It has the label in it, so cross-entropy has no weight of its own (-r 0).
    Formula: lgcnsai/PS-KD-Pytorch, main.py and loss/pskd_loss.py.
    """

    recipe = Recipe(gamma=0.0, alpha=0.0, beta=1.0)
    reads = frozenset({"logits"})
    has_teacher = False
    reads_samples = True

    @dataclass(frozen=True)
    class Options:
        pskd_alpha: float = option(
            0.8, "share of the past prediction in the last epoch's target", parse=share
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        logits = setup.student.logits
        past = F.one_hot(setup.labels, logits.shape[1]).to(logits.dtype)
        self.register_buffer("past", past)  # (N, K) probabilities
        # Of the past in this epoch's target. `begin` sets it, after a resume as well.
        self.register_buffer("share", torch.zeros((), dtype=past.dtype), persistent=False)

    def begin(self, epoch, epochs):
        self.share.fill_(self.options.pskd_alpha * epoch / epochs)

    def forward(self, student, teacher, batch):
        label = F.cross_entropy(student.logits, batch.labels)
        past = F.cross_entropy(student.logits, self.past[batch.index])
        self.parts = {"past": past.detach()}
        self.past[batch.index] = F.softmax(student.logits.detach(), dim=1)
        return label.lerp(past, self.share)
