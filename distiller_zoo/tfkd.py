from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.options import option, positive_number, share

from . import METHODS
from .base import Distiller, Recipe
from .rows import kl_from_log_probs


@METHODS.register("tfkd")
class TfKD(Distiller):
    """Yuan et al., Revisiting Knowledge Distillation via Label Smoothing, CVPR 2020: Tf-KD_reg.

    There is no teacher, but a virtual one that gives the label the probability a and every other
    class the same share of the rest. KL(teacher || student), mean over the batch, of the softmax of
    the teacher's probabilities over T and the student's probabilities at temperature 1. That is how
    the published code softens the teacher; it divides by samples and classes and multiplies by 100,
    which for 100 classes is this.

    Formula: yuanli2333/Teacher-free-Knowledge-Distillation, my_loss_function.py.
    """

    recipe = Recipe(gamma=0.9, alpha=0.0, beta=0.1)
    reads = frozenset({"logits"})
    has_teacher = False
    reads_samples = True

    @dataclass(frozen=True)
    class Options:
        tfkd_T: float = option(20.0, "temperature of the virtual teacher", parse=positive_number)
        tfkd_a: float = option(0.99, "probability that it gives the label", parse=share)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        if setup.student.logits.shape[1] < 2:
            raise ValueError("a virtual teacher needs two classes, and there is one")

    def forward(self, student, teacher, batch):
        log_p = F.log_softmax(student.logits, dim=1)  # (B, K)
        return kl_from_log_probs(log_p, self.teacher_log_probs(log_p, batch.labels)).mean()

    def teacher_log_probs(self, like: Tensor, labels: Tensor) -> Tensor:
        """The virtual teacher's of labels (B,), in shape and type of `like`: (B, K)"""
        a, classes = self.options.tfkd_a, like.shape[1]
        probs = torch.full_like(like, (1 - a) / (classes - 1)).scatter(1, labels[:, None], a)
        return F.log_softmax(probs / self.options.tfkd_T, dim=1)
