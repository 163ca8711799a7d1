from dataclasses import dataclass

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import kl


@METHODS.register("kd")
class KD(LogitDistiller):
    """Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (eq. 1, section 2.1).

    KL(teacher || student) of softened probabilities, summed over the classes, mean over the batch,
    times T^2. It is the `-a` term of every other method as well.
    """

    recipe = Recipe(gamma=0.1, alpha=0.9, beta=0.0)

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        return kl(student, teacher, self.options.kd_T)
